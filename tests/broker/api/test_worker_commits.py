"""The worker wire: parts, commits, and what is refused."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from sqlalchemy import select

from broker.commit_groups import CommitGroups
from broker.tables import Measured, Worker
from jobs.clock import db_now
from jobs.commits import Asked
from jobs.keys import part_key
from jobs.tables import Shard
from jobs.types import Commit, LineUsage
from markets import rentals
from markets.tables import RentalRow
from tests.support.databases import until_it_waits
from tests.support.object_stores import damage
from tests.support.wire_agent import (
    Agent,
    Rent,
    confirm,
    offer,
    part_bytes,
    running_batch,
    worker_row,
)

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


async def test_a_commit_that_the_database_cannot_hold_fails_alone(server: Any, ready: tuple[Agent, str]) -> None:
    """Commits that come together share a transaction; one whose tokens do not fit into 64 bits takes nobody with it."""
    agent, batch = ready
    lease = (await agent.lease())["lease"]
    groups = CommitGroups(server.services)

    def asked(line: int, tokens: int) -> Asked:
        key = part_key("default", batch, lease["shard_id"], epoch=lease["epoch"], seq=line, sha256="a" * 64)
        usage = (LineUsage(idx=line, status="completed", prompt_tokens=tokens, completion_tokens=1, cached_tokens=0,
                           attempts=1),)  # fmt: skip
        claim = Commit(shard_id=lease["shard_id"], epoch=lease["epoch"], nonce=lease["nonce"], seq=line, key=key, size=1,
                       sha256="a" * 64, lines=((line, line + 1),), usage=usage)  # fmt: skip
        return Asked(batch_id=batch, placement_id=agent.rental, commit=claim)

    sent = [asked(0, 1), asked(1, 2**63), asked(2, 1)]  # the first goes at once, the others wait for it together
    answers = await asyncio.gather(*(groups.commit(each) for each in sent), return_exceptions=True)
    assert isinstance(answers[1], Exception)
    assert [getattr(answers[n], "outcome", None) for n in (0, 2)] == ["committed", "committed"]
    async with server.services.database.transaction() as session:
        measured = (await session.scalars(select(Measured))).one()
    assert (measured.prompt_tokens, measured.completion_tokens) == (2, 2)


BEYOND = 2**31


@pytest.mark.parametrize(
    "changes",
    [
        {"usage": [[0, "completed", BEYOND, 5, 0, 1, False]]},
        {"usage": [[0, "completed", 7, BEYOND, 0, 1, False]]},
        {"usage": [[0, "completed", 7, 5, 0, BEYOND, False]]},
        {"counters": {"busy_ms": BEYOND}},
        {"seq": BEYOND},  # 32 bits in the database: it failed the transaction of all commits that came with it
        {"epoch": BEYOND},
    ],
    ids=["prompt tokens", "completion tokens", "attempts", "busy_ms", "seq", "epoch"],
)
async def test_numbers_that_would_overflow_the_sums_that_all_workers_share_are_400(
    ready: tuple[Agent, str], changes: dict[str, Any]
) -> None:
    """One worker's count near 2^63 in broker_measured was 500 for every later commit of the model, of all projects."""
    agent, _ = ready
    lease = (await agent.lease())["lease"]
    content = part_bytes(range(0, 1))
    target = (await agent.part(lease, content)).json
    await agent.put(target, content)
    for refused in (
        await agent.commit(lease, target, content, range(0, 1), **changes),
        await agent.deliver(lease, content, range(0, 1), **changes),
    ):
        assert (refused.status, refused.code) == (400, "wire_violation")
    assert (await agent.commit(lease, target, content, range(0, 1))).json["outcome"] == "committed"


async def test_one_absurd_number_is_not_the_speed_that_all_later_plans_go_by(
    server: Any, ready: tuple[Agent, str]
) -> None:
    agent, _ = ready
    lease = (await agent.lease())["lease"]
    usage = [[0, "completed", BEYOND - 1, BEYOND - 1, 0, 1, False]]
    content = part_bytes(range(0, 1))
    told = await agent.deliver(lease, content, range(0, 1), usage=usage, counters={"busy_ms": BEYOND - 1})
    assert told.json["outcome"] == "committed"
    async with server.services.database.transaction() as session:
        measured = (await session.scalars(select(Measured))).one()
    assert max(measured.prompt_tokens, measured.completion_tokens) <= 10_000_000
    assert measured.busy_ms <= 86_400_000


async def test_a_heartbeat_and_a_commit_of_one_worker_do_not_wait_for_each_other(
    server: Any, ready: tuple[Agent, str]
) -> None:
    """A commit holds the shard when it writes into the worker's row; a heartbeat takes both in the same order."""
    agent, _ = ready
    lease = (await agent.lease())["lease"]
    held = {"shard_id": lease["shard_id"], "epoch": lease["epoch"], "nonce": lease["nonce"]}
    database = server.services.database
    async with database.transaction() as session:
        await session.get_one(Shard, lease["shard_id"], with_for_update=True)
        beat = asyncio.create_task(agent.heartbeat(leases=[{**held, "in_flight": [], "suspects": {}}]))
        await until_it_waits(database, beat)
        worker = await session.get_one(Worker, agent.rental)
        worker.work_us = await db_now(session)
    answer = await beat
    assert (answer.status, answer.json["lost"]) == (200, [])


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
    assert await server.services.store.get(target["key"]) == content


async def test_a_part_of_other_bytes_of_the_same_length_is_not_committed(server: Any, ready: tuple[Agent, str]) -> None:
    agent, _ = ready
    lease = (await agent.lease())["lease"]
    content = part_bytes(range(0, 2))
    target = (await agent.part(lease, content)).json
    await agent.put(target, content)
    await damage(server.services.store, target["key"], b"y" * len(content))
    refused = await agent.commit(lease, target, content, range(0, 2))
    assert (refused.status, refused.code) == (422, "part_differs")


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


@pytest.mark.parametrize("key", ["", "/", "x" * 300, "default/files/file-X/under-a-file", "a/b#1", "\u00e9" * 200])
async def test_a_key_that_no_part_can_have_is_never_asked_of_the_store(ready: tuple[Agent, str], key: str) -> None:
    """A folder answers such names with errors of its own, which were 500."""
    agent, _ = ready
    body = {"epoch": 1, "nonce": "n", "seq": 0, "key": key, "size": 0, "sha256": "0" * 64, "lines": [], "usage": []}
    answer = await agent.post("shards/shard_x/commits", {**body, "counters": {}})
    assert (answer.status, answer.code) == (422, "part_missing")
