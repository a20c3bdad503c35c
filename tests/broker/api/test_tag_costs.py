"""Costs by the tags of lines, by machine and by model: rows that sum to the cost of the batch, until the tags are erased."""

from __future__ import annotations

from collections.abc import AsyncIterator
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import select

from broker.control.answer import Answerer
from broker.costs import BatchCost
from broker.tag_costs import divided
from jobs.clock import db_now
from jobs.tables import OutboxEvent
from ledger.accrual import Meter, accrue
from ledger.tables import Entry
from markets import price_book
from tests.support.house import House, request
from tests.support.line_worker import LineWorker
from tests.support.wire_agent import Rent, offer

SECRET = "agent-with-a-name-of-its-own"


@pytest.fixture
async def house(server: Any, rent: Rent) -> AsyncIterator[House]:
    agent = await rent()
    async with server.services.database.transaction() as session:
        await price_book.store_offers(session, "sandbox", [offer()], now_us=await db_now(session))
    yield House(server, server.services, LineWorker(server.services, placement=agent.rental))


def tagged(n: int, **tags: str) -> dict[str, Any]:
    return request(n, f"question {n}") | ({"x_broker": {"tags": tags}} if tags else {})


async def spend(house: House, seconds: int) -> None:
    """The machine has run for so long, at a millionth of a dollar a second."""
    async with house.services.database.transaction() as session:
        now_us = await db_now(session)
        meter = Meter(
            rental=house.worker.placement,
            offer_key=str(offer().key),
            market="sandbox",
            pricing="spot",
            project="default",
            batch=None,
            price_nano_hour=3_600_000,
            started_us=now_us,
        )
        until_us = now_us + seconds * 1_000_000
        await accrue(session, meter, until_us=until_us, final=False, actor="test", recorded_at_us=now_us)


async def costs(house: House, batch_id: str, by: str = "agent") -> Any:
    return (await house.server.call("GET", f"/v1/batches/{batch_id}/costs?by={by}")).json


async def test_rows_by_tag_sum_to_the_cost_of_the_batch(house: House) -> None:
    lines = [tagged(0, agent="planner"), tagged(1, agent="critic"), tagged(2), tagged(3, agent="planner")]
    batch_id = await house.submit(*lines)
    await house.run(batch_id, failed=[3])
    await spend(house, 10)
    told = await costs(house, batch_id)
    rows = {row["value"]: (row["lines"], row["completed"], row["failed"]) for row in told["data"]}
    assert rows == {"-": (1, 1, 0), "critic": (1, 1, 0), "planner": (2, 1, 1)}
    shown = (await house.batch(batch_id))["x_broker"]["cost_usd"]
    assert sum(Decimal(row["usd"]) for row in told["data"]) == Decimal(shown) == Decimal(told["usd"]) > 0


async def test_a_line_without_the_tag_has_the_batchs_own(house: House) -> None:
    batch_id = await house.submit(tagged(0, agent="critic"), tagged(1), tags={"agent": "planner", "team": "red"})
    assert [(row["value"], row["lines"]) for row in (await costs(house, batch_id))["data"]] == [
        ("critic", 1),
        ("planner", 1),
    ]
    assert [(row["value"], row["lines"]) for row in (await costs(house, batch_id, "team"))["data"]] == [("red", 2)]


async def test_lines_that_needed_no_engine_cost_nothing(house: House) -> None:
    same = [request(n, "same") | {"x_broker": {"tags": {"agent": name}}} for n, name in enumerate(("first", "again"))]
    batch_id = await house.submit(*same, reuse=True)
    await house.run(batch_id)
    await spend(house, 10)
    rows = {row["value"]: row for row in (await costs(house, batch_id))["data"]}
    assert (rows["again"]["completed"], rows["again"]["usd"]) == (1, "0")
    assert Decimal(rows["first"]["usd"]) > 0


async def test_rows_by_machine_and_by_model_sum_to_the_cost_of_the_batch(house: House) -> None:
    batch_id = await house.submit("same", "same", "other", "third", reuse=True)
    lease = await house.worker.lease(batch_id)
    assert lease is not None
    await house.worker.answer(lease, only=[0, 2], failed=[2])
    await Answerer(house.services).step()
    await spend(house, 10)
    shown = Decimal((await house.batch(batch_id))["x_broker"]["cost_usd"])
    told = await costs(house, batch_id, "placement")
    assert {
        row["value"]: (row["lines"], row["completed"], row["failed"], Decimal(row["usd"])) for row in told["data"]
    } == {
        "-": (1, 0, 0, 0),
        "broker": (1, 1, 0, 0),
        house.worker.placement: (2, 1, 1, shown),
    }
    assert Decimal(told["usd"]) == shown > 0
    [row] = (await costs(house, batch_id, "model"))["data"]
    assert (row["value"], row["lines"], row["completed"], row["failed"]) == ("tiny", 4, 2, 1)
    assert (row["input_tokens"], row["output_tokens"], Decimal(row["usd"])) == (14, 10, shown)


async def test_two_machines_costs_are_told_apart_and_an_idle_one_is_somebodys(house: House, rent: Rent) -> None:
    first = await house.submit("one", "two")
    await house.run(first)
    await spend(house, 7)
    busy, house.worker.placement = house.worker.placement, (await rent(batches=(first,))).rental
    await spend(house, 3)
    told = await costs(house, first, "placement")
    usd = {row["value"]: (row["lines"], Decimal(row["usd"])) for row in told["data"]}
    assert usd == {busy: (2, Decimal("0.000007")), house.worker.placement: (0, Decimal("0.000003"))}
    whole = (await house.server.call("GET", "/v1/costs?by=placement")).json
    assert Decimal(whole["usd"]) == Decimal(told["usd"]) == Decimal("0.00001")
    assert [row["usd"] for row in (await house.server.call("GET", "/v1/costs?by=model")).json["data"]] == ["0.00001"]


async def test_a_tag_that_is_called_like_a_reserved_word_is_asked_for_as_a_tag(house: House) -> None:
    batch_id = await house.submit(tagged(0, model="mine"), tagged(1))
    assert [row["value"] for row in (await costs(house, batch_id, "model"))["data"]] == ["tiny"]
    for by in ("tag:model", "tag:none"):
        rows = (await costs(house, batch_id, by))["data"]
        assert [row["value"] for row in rows] == (["-", "mine"] if by == "tag:model" else ["-"])


async def test_erased_tags_are_gone_and_the_sums_stay(house: House) -> None:
    batch_id = await house.submit(tagged(0, agent=SECRET), tagged(1), tags={"agent": "planner"})
    await house.run(batch_id)
    await spend(house, 10)
    before = (await costs(house, batch_id))["usd"]
    for _ in range(2):
        assert (await house.server.call("DELETE", f"/v1/batches/{batch_id}/tags")).status == 200
    told = await costs(house, batch_id)
    assert [(row["value"], row["lines"], row["usd"]) for row in told["data"]] == [("-", 2, before)]
    assert (await house.batch(batch_id))["x_broker"]["tags"] == {}


async def test_tags_reach_neither_the_books_nor_the_outbox_nor_the_logs(
    house: House, capfd: pytest.CaptureFixture[str]
) -> None:
    batch_id = await house.submit(tagged(0, agent=SECRET), tagged(1), tags={"task": SECRET}, reuse=True)
    await house.run(batch_id)
    await spend(house, 10)
    await house.server.call("DELETE", f"/v1/batches/{batch_id}/tags")
    async with house.services.database.transaction() as session:
        books = [row.payload.decode() for row in await session.scalars(select(Entry))]
        told = [str(row.payload) for row in await session.scalars(select(OutboxEvent))]
    logged = "".join(capfd.readouterr())
    assert books and told and batch_id in logged
    assert not [text for text in (*books, *told, logged) if SECRET in text]


async def test_a_project_sees_its_batches_together(house: House) -> None:
    for _ in range(2):
        await house.run(await house.submit(tagged(0, agent="planner"), tagged(1)))
    await spend(house, 10)
    told = (await house.server.call("GET", "/v1/costs?by=agent")).json
    assert (told["batches"], {row["value"]: row["completed"] for row in told["data"]}) == (2, {"-": 2, "planner": 2})
    assert Decimal(told["usd"]) == Decimal("0.00001")
    assert (await house.server.call("GET", "/v1/costs?by=agent&until=1")).json["data"] == []


async def test_who_may_not_erase_is_refused(house: House) -> None:
    batch_id = await house.submit(tagged(0, agent="planner"))
    key = await house.server.key("finance")
    assert (await house.server.call("DELETE", f"/v1/batches/{batch_id}/tags", key=key)).status == 403


@given(
    st.dictionaries(st.sampled_from("rst"), st.integers(0, 10**12)),
    st.dictionaries(st.sampled_from("rst"), st.dictionaries(st.sampled_from("ab-"), st.integers(1, 10**9), min_size=1)),
    st.dictionaries(st.sampled_from("ab-"), st.integers(1, 100)),
)
def test_shares_by_value_always_sum_to_the_whole(
    nano: dict[str, int], weights: dict[str, dict[str, int]], lines: dict[str, int]
) -> None:
    cost = BatchCost(nano=sum(nano.values()), by_rental={rental: (0, share) for rental, share in nano.items()})
    assert sum(divided(cost, weights, lines).values()) == cost.nano
