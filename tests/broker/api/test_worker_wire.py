"""The worker wire, spoken over real HTTP by a worker that is written out here, step by step."""

from __future__ import annotations

import asyncio
import hashlib
import json
from dataclasses import replace
from typing import Any

from sqlalchemy import select

from broker.control.finalise import Finaliser
from broker.tables import Measured, Worker
from jobs.clock import db_now
from markets import rentals
from tests.support.wire_agent import (
    HOUR,
    Agent,
    Rent,
    confirm,
    conforms,
    offer,
    part_bytes,
    running_batch,
    worker_row,
)

# --- the whole way ---------------------------------------------------------------------------------------------------


async def test_a_batch_is_done_over_the_wire_and_every_answer_fits_its_schema(
    server: Any, ready: tuple[Agent, str]
) -> None:
    agent, batch_id = ready
    conforms("hello.response", agent.welcome)
    conforms("heartbeat.response", (await agent.heartbeat()).json)
    answer = await agent.lease()
    conforms("lease.response", answer)
    lease = answer["lease"]
    shard = await server.call("GET", lease["input_get"], key=None)
    assert hashlib.sha256(shard.raw).hexdigest() == lease["input_sha256"]
    assert shard.raw.count(b"\n") == lease["lines"] == 4
    content = part_bytes(range(0, 2))
    target = await agent.part(lease, content)
    conforms("part.response", target.json)
    assert (await agent.put(target.json, content)).status == 201
    committed = await agent.commit(lease, target.json, content, range(0, 2))
    conforms("commit.response", committed.json)
    assert (committed.json["outcome"], committed.json["done"], committed.json["shard_done"]) == (
        "committed",
        [[0, 2]],
        False,
    )
    assert not server.services.wake["finalise"].is_set()
    last = await agent.work(lease, range(2, 4), seq=1)
    assert (last.json["outcome"], last.json["shard_done"]) == ("committed", True)
    assert server.services.wake["finalise"].is_set(), "a shard that is done may end its batch: the loop is told at once"
    await Finaliser(server.services).step()
    shown = (await server.call("GET", f"/v1/batches/{batch_id}")).json
    assert shown["status"] == "completed"
    assert shown["request_counts"] == {"total": 4, "completed": 4, "failed": 0}
    assert shown["usage"]["total_tokens"] == 4 * 12
    output = await server.call("GET", f"/v1/files/{shown['output_file_id']}/content")
    assert [json.loads(line)["custom_id"] for line in output.raw.splitlines()] == [f"line-{n}" for n in range(4)]


# --- who a worker is -------------------------------------------------------------------------------------------------


async def test_a_bootstrap_token_is_bound_to_the_process_that_used_it(server: Any, rent: Rent) -> None:
    batch = await running_batch(server, offer())
    agent = await rent(batches=(batch,))
    first = await agent.hello()
    again = await agent.hello()
    assert (first.status, again.status) == (200, 200), "a lost answer must not strand a machine"
    assert again.json["worker_id"] == first.json["worker_id"]
    thief = replace(agent, pubkey="cd" * 32)
    assert ((await thief.hello()).status, (await thief.hello()).code) == (422, "bootstrap_used")


async def test_a_wrong_unknown_or_stale_bootstrap_token_is_401(server: Any, rent: Rent) -> None:
    await running_batch(server, offer())
    agent = await rent()
    assert (await replace(agent, bootstrap="x" * 64).hello()).status == 401
    assert (await replace(agent, rental="rental_none").hello()).status == 401
    nobody = await server.call("POST", "/worker/v1/hello", key=None, json={})
    assert nobody.status == 400, "the document is checked first"
    server.services.database.clock_offset_us = 901 * 1_000_000
    assert (await agent.hello()).code == "bootstrap_expired"


async def test_hello_before_the_market_confirms_is_425_and_binds_nothing(server: Any, rent: Rent) -> None:
    batch = await running_batch(server, offer())
    agent = await rent(confirmed=False, batches=(batch,))
    early = await agent.hello()
    assert (early.status, early.headers["Retry-After"]) == (425, "1")
    await confirm(server, agent, offer())
    assert (await agent.hello()).status == 200


async def test_residency_is_evaluated_again_before_anything_is_given(server: Any, rent: Rent) -> None:
    """The plan put a batch for Germany on a machine in the US: the plan is no permission."""
    abroad = offer("US")
    batch = await running_batch(server, abroad, residency=["DE"])
    agent = await rent(abroad, batches=(batch,))
    refused = await agent.hello()
    assert (refused.status, refused.code) == (403, "residency_forbidden")
    assert "country" in refused.json["error"]["message"]
    worker = await worker_row(server, agent)
    assert (worker.state, worker.pubkey) == ("failed", None)
    assert server.services.wake["reconcile"].is_set(), "the machine is to be released"
    assert (await agent.hello()).status == 401


async def test_evidence_that_expired_since_placing_forbids(server: Any, rent: Rent) -> None:
    fading = offer("DE", ttl=HOUR)
    batch = await running_batch(server, fading, residency=["DE"])
    agent = await rent(fading, batches=(batch,))
    assert (await agent.hello()).status == 200
    assert (await agent.lease())["lease"] is not None
    later = await rent(fading, batches=(batch,))
    server.services.database.clock_offset_us = 2 * 3600 * 1_000_000
    async with server.services.database.transaction() as session:
        (await session.get_one(Worker, later.rental)).bootstrap_expires_us = 2**62
    assert (await later.hello()).code == "residency_forbidden"


async def test_only_batches_whose_policy_allows_the_place_are_leased(server: Any, rent: Rent) -> None:
    of = offer("FR")
    forbidden = await running_batch(server, of, rank=0, residency=["DE"])
    allowed = await running_batch(server, of, rank=1, residency=["FR"])
    agent = await rent(of, batches=(forbidden, allowed))
    assert (await agent.hello()).status == 200
    first, second = await agent.lease(), await agent.lease()
    assert first["lease"]["batch_id"] == allowed
    assert second == {"lease": None, "stop": False}


async def test_leases_follow_the_plans_order_project_and_model(server: Any, rent: Rent) -> None:
    of = offer()
    late = await running_batch(server, of, lines=1, rank=2)
    early = await running_batch(server, of, lines=1, rank=1)
    elsewhere = await running_batch(server, offer(sku="other"), lines=1)
    agent = await rent(of)
    await agent.hello()
    order = [(await agent.lease())["lease"]["batch_id"] for _ in range(2)]
    assert order == [early, late]
    assert (await agent.lease())["lease"] is None, f"{elsewhere} is assigned to another offer"


async def test_a_session_ends_with_its_rental_its_time_and_its_goodbye(server: Any, ready: tuple[Agent, str]) -> None:
    agent, _ = ready
    assert (await agent.post("heartbeat", {}, "wrk_x.y")).status == 401
    forged = agent.token[:-2] + ("AA" if not agent.token.endswith("AA") else "BB")
    assert (await agent.post("leases", {"wait_s": 0}, forged)).status == 401
    server.services.database.clock_offset_us = 601 * 1_000_000
    assert (await agent.heartbeat()).status == 401
    server.services.database.clock_offset_us = 0
    assert (await agent.heartbeat()).status == 200
    await confirm(server, agent, offer(), ended=True)
    ended = await agent.heartbeat()
    assert (ended.status, ended.code) == (401, "rental_ended")


async def test_raising_the_session_counter_cuts_every_token_off(server: Any, ready: tuple[Agent, str]) -> None:
    agent, _ = ready
    async with server.services.database.transaction() as session:
        (await session.get_one(Worker, agent.rental)).session += 1
    cut = await agent.heartbeat()
    assert (cut.status, cut.code) == (401, "session_ended")
    assert (await agent.hello()).status == 200, "the same process may begin a new session"
    assert (await agent.heartbeat()).status == 200


async def test_a_token_past_half_its_life_is_renewed(server: Any, ready: tuple[Agent, str]) -> None:
    agent, _ = ready
    assert (await agent.heartbeat()).json["token"] is None
    server.services.database.clock_offset_us = 301 * 1_000_000
    renewed = (await agent.heartbeat()).json["token"]
    assert renewed
    server.services.database.clock_offset_us = 700 * 1_000_000
    assert (await agent.heartbeat()).status == 401
    agent.token = renewed
    assert (await agent.heartbeat()).status == 200


async def test_goodbye_frees_the_leases_for_others(server: Any, ready: tuple[Agent, str], rent: Rent) -> None:
    agent, batch = ready
    lease = (await agent.lease())["lease"]
    said = await agent.post("goodbye", {"reason": "drain", "error": None})
    assert said.status == 204
    assert (await agent.heartbeat()).status == 401
    other = await rent(batches=(batch,))
    await other.hello()
    taken = (await other.lease())["lease"]
    assert (taken["shard_id"], taken["epoch"]) == (lease["shard_id"], lease["epoch"] + 1)


# --- living ----------------------------------------------------------------------------------------------------------


async def test_heartbeats_are_remembered_and_the_load_time_is_measured_once(server: Any, rent: Rent) -> None:
    batch = await running_batch(server, offer())
    agent = await rent(batches=(batch,))
    await agent.hello()
    assert (await server.call("GET", f"/v1/batches/{batch}")).json["x_broker"]["phase"] == "loading_model"
    server.services.database.clock_offset_us = 7 * 1_000_000
    await agent.heartbeat("ready", metrics={"running": 3}, notice_in_s=60)
    await agent.heartbeat("ready")
    worker = await worker_row(server, agent)
    assert worker.ready_us is not None
    assert worker.notice_us is not None
    assert worker.seen_us is not None
    assert 59_000_000 <= worker.notice_us - worker.ready_us <= 61_000_000
    async with server.services.database.transaction() as session:
        measured = (await session.scalars(select(Measured))).one()
    assert (measured.model, measured.accelerator, measured.loads) == ("tiny", "cpu/process", 1)
    assert 7_000 <= measured.load_ms < 60_000
    assert (await server.call("GET", f"/v1/batches/{batch}")).json["x_broker"]["phase"] == "running"


async def test_a_heartbeat_renews_leases_and_names_those_that_are_lost(
    server: Any, ready: tuple[Agent, str], rent: Rent
) -> None:
    agent, batch = ready
    lease = (await agent.lease())["lease"]
    held = {
        "shard_id": lease["shard_id"],
        "epoch": lease["epoch"],
        "nonce": lease["nonce"],
        "in_flight": [1],
        "suspects": {},
    }
    ttl_us = round(server.services.settings.jobs.lease_ttl_s * 1_000_000)
    server.services.database.clock_offset_us = ttl_us - 1_000_000
    assert (await agent.heartbeat(leases=[held])).json["lost"] == []
    server.services.database.clock_offset_us = ttl_us + 1_000_000
    other = await rent(batches=(batch,))
    await other.hello()
    assert (await other.lease())["lease"] is None, "the renewed lease still holds"
    server.services.database.clock_offset_us = 3 * ttl_us
    taken = (await other.lease())["lease"]
    assert taken["shard_id"] == lease["shard_id"]
    assert taken["suspects"] == {"1": 1}, "the line that was in flight when the lease expired is suspect"
    assert (await agent.heartbeat(leases=[held])).json["lost"] == [lease["shard_id"]]


async def test_a_drain_is_told_by_heartbeat_and_stops_the_leases(server: Any, ready: tuple[Agent, str]) -> None:
    agent, _ = ready
    assert (await agent.heartbeat()).json["drain"] is False
    async with server.services.database.transaction() as session:
        (await session.get_one(Worker, agent.rental)).drain_reason = "not needed"
    told = (await agent.heartbeat()).json
    assert told["drain"] is True
    assert told["drain_in_s"] == 60, "bounded: a hanging line must not keep a machine that nobody needs"
    assert await agent.lease() == {"lease": None, "stop": True}


async def test_a_rental_that_is_being_released_gets_no_more_work(server: Any, ready: tuple[Agent, str]) -> None:
    agent, _ = ready
    async with server.services.database.transaction() as session:
        await rentals.request_release(session, agent.rental, reason="test", now_us=await db_now(session))
    assert await agent.lease() == {"lease": None, "stop": True}
    assert (await agent.heartbeat()).json["drain"] is True


async def test_a_waiting_worker_gets_work_that_appears(server: Any, rent: Rent) -> None:
    batch = await running_batch(server, offer(), lines=1)
    agent = await rent(batches=(batch,))
    await agent.hello()
    await agent.lease()
    waiting = asyncio.create_task(agent.lease(wait_s=30))
    fresh = await running_batch(server, offer(), lines=1, rank=1)
    assert (await waiting)["lease"]["batch_id"] == fresh


async def test_a_failed_worker_is_remembered_with_its_last_words(server: Any, ready: tuple[Agent, str]) -> None:
    agent, _ = ready
    await agent.heartbeat("failed", error="engine: out of memory")
    worker = await worker_row(server, agent)
    assert (worker.state, worker.error) == ("failed", "engine: out of memory")
    assert server.services.wake["reconcile"].is_set()
    assert (await agent.lease())["stop"] is True


async def test_many_workers_that_are_the_first_of_their_kind_at_once_are_all_measured(server: Any, rent: Rent) -> None:
    """On PostgreSQL all but one of them once met the row that the other had just made, and got a 500."""
    await running_batch(server, offer())
    agents = [await rent() for _ in range(5)]
    for agent in agents:
        assert (await agent.hello()).status == 200
    answers = await asyncio.gather(*(agent.heartbeat() for agent in agents))
    assert [answer.status for answer in answers] == [200] * 5
    async with server.services.database.transaction() as session:
        measured = (await session.scalars(select(Measured))).one()
    assert measured.loads == 5
