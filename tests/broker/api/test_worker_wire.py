"""The worker wire, spoken over real HTTP by a worker that is written out here, step by step."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from sqlalchemy import select

from broker.control.finalise import Finaliser
from broker.control.intake import validate_file
from broker.control.place import await_worker
from broker.tables import Assignment, Measured, Worker
from jobs import batches
from jobs.clock import db_now
from jobs.tables import Batch
from markets import rentals
from markets.market import Rental
from markets.offer import Accelerator, Evidence, Offer, OfferKey
from markets.tables import RentalRow

SCHEMAS = Path(__file__).parents[3] / "workers" / "agent" / "schemas"
HOUR = timedelta(hours=1)


def offer(country: str = "DE", *, sku: str = "cpu-1", ttl: timedelta = 24 * HOUR) -> Offer:
    now = datetime.now(UTC)
    return Offer(
        key=OfferKey("sandbox", "eu", None, sku, "cpu", 0, "spot"),
        launch="process",
        accelerator=Accelerator(),
        currency="USD",
        price=Decimal("0.05"),
        observed_at=now,
        source="test",
        raw_sha256="0" * 64,
        country=country,
        evidence=(Evidence("provider_api", "test", now, ttl),),
        location_tier="named_datacenter",
    )


@dataclass
class Agent:
    """A worker as it looks on the wire; `token` is its session's."""

    server: Any
    rental: str
    bootstrap: str
    pubkey: str = "ab" * 32
    token: str = ""
    welcome: dict[str, Any] = field(default_factory=dict)

    async def post(self, path: str, body: dict[str, Any], token: str | None = None) -> Any:
        return await self.server.call("POST", f"/worker/v1/{path}", key=token or self.token, json=body)

    async def hello(self, **changes: Any) -> Any:
        body = {
            "rental_id": self.rental,
            "pubkey": self.pubkey,
            "agent_version": "1",
            "hostname": "here",
            "pid": 1,
            "cpu_count": 2,
            "memory_mib": 100,
            "disk_free_mib": 100,
            "accelerators": [],
            "driver": None,
            "evidence": {},
            **changes,
        }
        answer = await self.post("hello", body, self.bootstrap)
        if answer.status == 200:
            self.token, self.welcome = answer.json["token"], answer.json
        return answer

    async def heartbeat(self, state: str = "ready", **changes: Any) -> Any:
        body = {"state": state, "leases": [], "metrics": {}, "notice_in_s": None, "error": None, **changes}
        return await self.post("heartbeat", body)

    async def lease(self, wait_s: float = 0) -> Any:
        return (await self.post("leases", {"wait_s": wait_s})).json

    async def part(self, lease: dict[str, Any], content: bytes, seq: int = 0) -> Any:
        body = {
            "epoch": lease["epoch"],
            "nonce": lease["nonce"],
            "seq": seq,
            "sha256": hashlib.sha256(content).hexdigest(),
            "size": len(content),
        }
        return await self.server.call("POST", lease["part_put"], key=self.token, json=body)

    async def put(self, target: dict[str, Any], content: bytes) -> Any:
        return await self.server.call("PUT", target["put_url"], key=None, data=content, headers=target["headers"])

    async def commit(
        self, lease: dict[str, Any], target: dict[str, Any], content: bytes, lines: range, seq: int = 0, **changes: Any
    ) -> Any:
        body = {
            "epoch": lease["epoch"],
            "nonce": lease["nonce"],
            "seq": seq,
            "key": target["key"],
            "size": len(content),
            "sha256": hashlib.sha256(content).hexdigest(),
            "lines": [[lines.start, lines.stop]],
            "usage": [[idx, "completed", 7, 5, 0, 1, False] for idx in lines],
            "counters": {"busy_ms": 2000, "requests": len(lines)},
            **changes,
        }
        return await self.post(f"shards/{lease['shard_id']}/commits", body)

    async def work(self, lease: dict[str, Any], lines: range, seq: int = 0) -> Any:
        """Answer lines, store the part, commit it."""
        content = part_bytes(lines)
        target = (await self.part(lease, content, seq)).json
        assert (await self.put(target, content)).status == 201
        return await self.commit(lease, target, content, lines, seq)


def part_bytes(lines: range) -> bytes:
    rows = []
    for idx in lines:
        response = {"status_code": 200, "request_id": f"r{idx}", "body": {"id": f"c{idx}"}}
        line = {"custom_id": f"line-{idx}", "response": response, "error": None}
        rows.append(json.dumps({"idx": idx, "status": "completed", "line": line}) + "\n")
    return gzip.compress("".join(rows).encode(), mtime=0)


Rent = Callable[..., Awaitable[Agent]]


@pytest.fixture
def rent(server: Any) -> Rent:
    """Rent a machine as the place loop does: intent, worker row, and the market's confirmation."""
    made = 0

    async def rent(of: Offer | None = None, *, confirmed: bool = True, batches: tuple[str, ...] = ()) -> Agent:
        nonlocal made
        made += 1
        of = of or offer()
        rental_id, token = f"rental_{made}", f"{made:064d}"
        async with server.services.database.transaction() as session:
            now_us = await db_now(session)
            await rentals.record_intent(
                session,
                rental_id=rental_id,
                offer=of,
                project="default",
                model="tiny",
                precision="auto",
                purpose={"batches": list(batches)},
                now_us=now_us,
            )
            await rentals.mark_creating(session, rental_id, now_us=now_us)
            await await_worker(session, rental_id, token, now_us)
        agent = Agent(server, rental_id, token)
        if confirmed:
            await confirm(server, agent, of)
        return agent

    return rent


async def confirm(server: Any, agent: Agent, of: Offer, *, ended: bool = False) -> None:
    now = datetime.now(UTC)
    seen = Rental(
        tag=agent.rental,
        offer_key=of.key,
        state="ended" if ended else "running",
        price=Decimal("0.05"),
        currency="USD",
        started_at=now,
        ended_at=now if ended else None,
        seen_at=now,
        end_reason="preempted" if ended else None,
    )
    async with server.services.database.transaction() as session:
        await rentals.observe(session, seen, now_us=await db_now(session))


async def running_batch(server: Any, of: Offer, *, lines: int = 4, rank: int = 0, **wishes: Any) -> str:
    """A batch that is in progress and assigned to an offer, as validate and plan loops leave it."""
    batch = await server.new_batch(lines=lines, x_broker={"on_infeasible": "queue", **wishes})
    async with server.services.database.transaction() as session:
        key = (await session.get_one(Batch, batch["id"])).input_key
    found = await validate_file(server.services, key, "/v1/chat/completions")
    async with server.services.database.transaction() as session:
        await batches.begin(session, batch["id"], found)
        session.add(
            Assignment(
                batch=batch["id"], offer_key=str(of.key), plan="p", rank=rank, cost_nano=0, end_us=batch["expires_at"]
            )
        )
    return str(batch["id"])


@pytest.fixture
async def ready(server: Any, rent: Rent) -> tuple[Agent, str]:
    """A worker that said hello and is ready, and a batch of four lines for it."""
    batch = await running_batch(server, offer())
    agent = await rent()
    assert (await agent.hello()).status == 200
    assert (await agent.heartbeat()).status == 200
    return agent, batch


def conforms(name: str, document: Any) -> None:
    jsonschema.Draft202012Validator(json.loads((SCHEMAS / f"{name}.json").read_text())).validate(document)


async def worker_row(server: Any, agent: Agent) -> Worker:
    async with server.services.database.transaction() as session:
        return await session.get_one(Worker, agent.rental)


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
    assert ((await thief.hello()).status, (await thief.hello()).code) == (409, "bootstrap_used")


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
    assert (await agent.heartbeat()).json["drain"] is True
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


# --- parts and commits -----------------------------------------------------------------------------------------------


async def test_a_repeated_commit_gets_the_first_answer(server: Any, ready: tuple[Agent, str]) -> None:
    agent, _ = ready
    lease = (await agent.lease())["lease"]
    content = part_bytes(range(0, 2))
    target = (await agent.part(lease, content)).json
    await agent.put(target, content)
    assert (await agent.commit(lease, target, content, range(0, 2))).json["outcome"] == "committed"
    again = (await agent.commit(lease, target, content, range(0, 2))).json
    assert (again["outcome"], again["outcome_before"], again["done"]) == ("replayed", "committed", [[0, 2]])
    async with server.services.database.transaction() as session:
        measured = (await session.scalars(select(Measured))).one()
    assert (measured.completion_tokens, measured.busy_ms) == (10, 2000), "a replay is not measured again"


async def test_an_overlap_is_told_with_what_is_done(ready: tuple[Agent, str]) -> None:
    agent, _ = ready
    lease = (await agent.lease())["lease"]
    await agent.work(lease, range(0, 2))
    late = (await agent.work(lease, range(1, 3), seq=1)).json
    assert (late["outcome"], late["done"]) == ("rejected_overlap", [[0, 2]])


async def test_a_commit_without_its_object_is_422(server: Any, ready: tuple[Agent, str]) -> None:
    agent, _ = ready
    lease = (await agent.lease())["lease"]
    content = part_bytes(range(0, 2))
    target = (await agent.part(lease, content)).json
    missing = await agent.commit(lease, target, content, range(0, 2))
    assert (missing.status, missing.code) == (422, "part_missing")
    await agent.put(target, content)
    other_size = await agent.commit(lease, target, content, range(0, 2), size=len(content) + 1)
    assert (other_size.status, other_size.code) == (422, "part_differs")
    outside = await agent.commit(lease, {"key": "../../secret"}, content, range(0, 2))
    assert outside.status == 422
    assert (await agent.commit(lease, target, content, range(0, 2))).json["outcome"] == "committed"


async def test_a_part_may_be_put_once_and_only_as_announced(server: Any, ready: tuple[Agent, str]) -> None:
    agent, _ = ready
    lease = (await agent.lease())["lease"]
    content = part_bytes(range(0, 2))
    target = (await agent.part(lease, content)).json
    for other in (content[:-1], content + b"x", b"y" * len(content), b""):
        answer = await agent.put(target, other)
        assert (answer.status, answer.code) == (422, "part_differs"), len(other)
    assert (await agent.put(target, content)).status == 201
    assert (await agent.put(target, content)).status == 412
    stored = server.services.settings.data / "objects" / target["key"]
    assert stored.read_bytes() == content


async def test_a_permission_is_for_one_method_one_key_and_a_while(server: Any, ready: tuple[Agent, str]) -> None:
    agent, _ = ready
    lease = (await agent.lease())["lease"]
    content = part_bytes(range(0, 1))
    target = (await agent.part(lease, content)).json
    read_by_put = await server.call("GET", target["put_url"], key=None)
    assert (read_by_put.status, read_by_put.code) == (403, "bad_token")
    written = await server.call(
        "PUT", lease["input_get"], key=None, data=b"x", headers={"Content-Type": "application/octet-stream"}
    )
    assert written.status == 403
    forged = target["put_url"][:-3] + "AAA"
    assert (await agent.put({**target, "put_url": forged}, content)).status == 403
    server.services.database.clock_offset_us = 901 * 1_000_000
    assert (await agent.put(target, content)).status == 403
    assert (await server.call("GET", lease["input_get"], key=None)).status == 403


async def test_anothers_lease_gives_no_part_and_no_commit(server: Any, ready: tuple[Agent, str], rent: Rent) -> None:
    agent, batch = ready
    lease = (await agent.lease())["lease"]
    thief = await rent(batches=(batch,))
    await thief.hello()
    content = part_bytes(range(0, 1))
    assert (await thief.part(lease, content)).status == 404
    target = (await agent.part(lease, content)).json
    await agent.put(target, content)
    stolen = await thief.commit(lease, target, content, range(0, 1))
    assert stolen.json["outcome"] == "rejected_invalid"
    assert (await agent.part({**lease, "nonce": "ü"}, content)).status == 400
    assert (await agent.part({**lease, "nonce": "00"}, content)).status == 404
    assert (await agent.part({**lease, "epoch": lease["epoch"] + 1}, content)).status == 404


@pytest.mark.parametrize(
    ("path", "body", "where"),
    [
        ("heartbeat", {"state": "asleep", "leases": [], "metrics": {}, "notice_in_s": None, "error": None}, "$.state"),
        (
            "heartbeat",
            {"state": "ready", "leases": [], "metrics": {"x": "1"}, "notice_in_s": None, "error": None},
            "$.metrics.x",
        ),
        ("leases", {"wait_s": 31}, "$.wait_s"),
        ("leases", {"wait_s": 0, "more": 1}, "$"),
        ("goodbye", {"reason": "bored", "error": None}, "$.reason"),
        ("shards/shard_1/parts", {"epoch": 1.0, "nonce": "", "seq": 0, "sha256": "0" * 64, "size": 1}, "$.epoch"),
        ("shards/shard_1/parts", {"epoch": 1, "nonce": "", "seq": 0, "sha256": "z", "size": 1}, "$.sha256"),
        ("shards/shard_1/commits", {}, "$"),
    ],
)
async def test_a_body_that_leaves_its_schema_is_400_and_says_where(
    ready: tuple[Agent, str], path: str, body: dict[str, Any], where: str
) -> None:
    agent, _ = ready
    answer = await agent.post(path, body)
    assert (answer.status, answer.code, answer.json["error"]["param"]) == (400, "wire_violation", where)


async def test_numbers_that_no_database_holds_are_400(ready: tuple[Agent, str]) -> None:
    agent, _ = ready
    part = {"epoch": 2**70, "nonce": "", "seq": 0, "sha256": "0" * 64, "size": 1}
    assert (await agent.post("shards/shard_1/parts", part)).status == 400
    held = {"shard_id": "s", "epoch": 1, "nonce": "n", "in_flight": [], "suspects": {"one": 1}}
    assert (await agent.heartbeat(leases=[held])).status == 400


async def test_a_rental_that_we_gave_back_is_no_preemption(server: Any, ready: tuple[Agent, str]) -> None:
    agent, batch = ready
    await agent.work((await agent.lease())["lease"], range(0, 2))
    async with server.services.database.transaction() as session:
        await rentals.request_release(session, agent.rental, reason="test", now_us=await db_now(session))
    await confirm(server, agent, offer(), ended=True)
    assert (await server.call("GET", f"/v1/batches/{batch}")).json["x_broker"]["preemptions"] == 0


async def test_a_model_that_is_gone_fails_the_worker_instead_of_letting_it_ask_forever(server: Any, rent: Rent) -> None:
    batch = await running_batch(server, offer())
    agent = await rent(batches=(batch,))
    server.services.models.clear()
    refused = await agent.hello()
    assert (refused.status, refused.code) == (403, "engine_unavailable")
    assert (await worker_row(server, agent)).state == "failed"
    assert server.services.wake["reconcile"].is_set()


async def test_a_preempted_rental_counts_as_a_preemption_of_its_batch(server: Any, ready: tuple[Agent, str]) -> None:
    agent, batch = ready
    lease = (await agent.lease())["lease"]
    await agent.work(lease, range(0, 2))
    await confirm(server, agent, offer(), ended=True)
    shown = (await server.call("GET", f"/v1/batches/{batch}")).json["x_broker"]
    assert (shown["preemptions"], shown["phase"]) == (1, "queued")
    placed = (await server.call("GET", f"/v1/batches/{batch}/placements")).json["data"]
    assert [(each["rental"], each["lines"], each["end_reason"]) for each in placed] == [(agent.rental, 2, "preempted")]
    async with server.services.database.transaction() as session:
        assert (await session.get_one(RentalRow, agent.rental)).release_us is None
