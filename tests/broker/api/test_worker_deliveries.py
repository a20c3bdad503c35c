"""A part and its commit in one request: the same promises as in three."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import select

from jobs import leases
from jobs.keys import part_key
from jobs.tables import Part
from tests.support.object_stores import damage
from tests.support.wire_agent import Agent, Rent, conforms, part_bytes


async def stored(server: Any) -> list[str]:
    return [key async for key in server.services.store.keys("") if "/parts/" in key]


async def test_a_delivered_part_is_stored_and_counts(server: Any, ready: tuple[Agent, str]) -> None:
    agent, batch = ready
    assert agent.welcome["part"]["delivered_bytes"] > 0
    lease = (await agent.lease())["lease"]
    content = part_bytes(range(0, 2))
    answer = await agent.deliver(lease, content, range(0, 2))
    conforms("commit.response", answer.json)
    assert (answer.json["outcome"], answer.json["done"]) == ("committed", [[0, 2]])
    async with server.services.database.transaction() as session:
        part = (await session.scalars(select(Part))).one()
    sha256 = part.sha256
    assert part.key == part_key("default", batch, lease["shard_id"], epoch=lease["epoch"], seq=0, sha256=sha256)
    assert await server.services.store.get(part.key) == content
    last = await agent.work(lease, range(2, 4), seq=1)  # the long way, in the same lease
    assert last.json["outcome"] == "committed"


async def test_a_repeated_delivery_gets_the_first_answer(ready: tuple[Agent, str]) -> None:
    agent, _ = ready
    lease = (await agent.lease())["lease"]
    content = part_bytes(range(0, 2))
    assert (await agent.deliver(lease, content, range(0, 2))).json["outcome"] == "committed"
    again = (await agent.deliver(lease, content, range(0, 2))).json
    assert (again["outcome"], again["outcome_before"], again["done"]) == ("replayed", "committed", [[0, 2]])


async def test_a_delivery_whose_broker_died_before_it_counted_counts_when_it_is_repeated(
    server: Any, ready: tuple[Agent, str]
) -> None:
    """The object is there, the row is not: it was stored, and the transaction never ended."""
    agent, _ = ready
    lease = (await agent.lease())["lease"]
    content = part_bytes(range(0, 2))
    target = (await agent.part(lease, content)).json
    await server.services.store.put(target["key"], content)
    assert (await agent.deliver(lease, content, range(0, 2))).json["outcome"] == "committed"


async def test_what_lies_under_the_name_of_a_part_and_is_not_it_is_not_committed(
    server: Any, ready: tuple[Agent, str]
) -> None:
    agent, _ = ready
    lease = (await agent.lease())["lease"]
    content = part_bytes(range(0, 2))
    target = (await agent.part(lease, content)).json
    await agent.put(target, content)
    await damage(server.services.store, target["key"], content[:-1] + b"x")
    refused = await agent.deliver(lease, content, range(0, 2))
    assert (refused.status, refused.code) == (422, "part_differs")


@pytest.mark.parametrize("changes", [{"size": 7}, {"sha256": "0" * 64}, {"size": 10**9}])
async def test_a_delivery_of_other_bytes_than_announced_stores_nothing(
    server: Any, ready: tuple[Agent, str], changes: dict[str, Any]
) -> None:
    agent, _ = ready
    lease = (await agent.lease())["lease"]
    refused = await agent.deliver(lease, part_bytes(range(0, 2)), range(0, 2), **changes)
    assert (refused.status, refused.code) in ((422, "part_differs"), (413, "part_too_large"))
    assert await stored(server) == []


async def test_anothers_lease_takes_no_delivery_and_nothing_is_stored(
    server: Any, ready: tuple[Agent, str], rent: Rent
) -> None:
    agent, batch = ready
    lease = (await agent.lease())["lease"]
    thief = await rent(batches=(batch,))
    await thief.hello()
    content = part_bytes(range(0, 1))
    assert (await thief.deliver(lease, content, range(0, 1))).status == 404
    assert (await agent.deliver({**lease, "nonce": "00"}, content, range(0, 1))).status == 404
    assert (await agent.deliver({**lease, "epoch": lease["epoch"] + 1}, content, range(0, 1))).status == 404
    async with server.services.database.transaction() as session:
        await leases.revoke(session, placement_id=agent.rental)
    assert (await agent.deliver(lease, content, range(0, 1))).code == "lease_lost"
    assert (await agent.deliver(lease, content, range(0, 1), token="wrk_forged")).status == 401
    assert await stored(server) == []


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"epoch": 1.0}, "$.epoch"),
        ({"epoch": -1}, "$.epoch"),
        ({"sha256": "z"}, "$.sha256"),
        ({"more": 1}, "$"),
        ({"key": "default/x"}, "$"),  # which object it is, is not the worker's to say
        ({"usage": [[0, "completed", 7, 5, 0, 1]]}, "$.usage[0]"),  # nothing may be left out
        ({"usage": [[0, "completed", 7, 5, 0, 1, False, 1, 1]]}, "$.usage[0]"),
        ({"usage": [[0, "lost", 7, 5, 0, 1, False]]}, "$.usage[0][1]"),
        ({"usage": [[0, "completed", -7, 5, 0, 1, False]]}, "$.usage[0][2]"),
        ({"nonce": 7}, "$.nonce"),
        ({"counters": {"busy_ms": 1.5}}, "$.counters.busy_ms"),
    ],
)
async def test_a_delivery_that_leaves_its_schema_is_400_and_says_where(
    server: Any, ready: tuple[Agent, str], changes: dict[str, Any], where: str
) -> None:
    agent, _ = ready
    lease = (await agent.lease())["lease"]
    answer = await agent.deliver(lease, part_bytes(range(0, 1)), range(0, 1), **changes)
    assert (answer.status, answer.code) == (400, "wire_violation")
    assert answer.json["error"]["param"].startswith(where)
    assert await stored(server) == []


@pytest.mark.parametrize(
    "head", [b"", b"{", b"[]", b"\xff", b'{"epoch": 1' + b"0" * 30 + b"}", b'{"nonce": "\\u0000"}']
)
async def test_what_is_no_delivery_at_all_is_400(server: Any, ready: tuple[Agent, str], head: bytes) -> None:
    agent, _ = ready
    lease = (await agent.lease())["lease"]
    answer = await server.call(
        "POST",
        f"/worker/v1/shards/{lease['shard_id']}/deliveries",
        key=agent.token,
        data=head + b"\nbytes",
        headers={"Content-Type": "application/vnd.compute-broker.part"},
    )
    assert answer.status == 400
