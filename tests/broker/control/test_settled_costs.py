"""When a machine's end is booked, its waste and what it avoided are in the books, and its cost is what it was."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import select
from sqlmodel import col

from broker.control.avoided import baselines
from broker.control.settle import Settler
from broker.tables import Worker
from broker.unit_economics import avoided_by, economics_of
from jobs.clock import db_now
from jobs.tables import Batch, Part, Shard
from ledger import audit
from ledger.book import balances
from markets import rentals
from markets.market import Rental
from markets.tables import RentalRow


async def end(town: Any, of: Any, rental: str, *, reason: Any = "released") -> None:
    row = await town.row(RentalRow, rental)
    started = datetime.fromtimestamp(row.started_us / 1_000_000, tz=UTC)
    gone = Rental(
        tag=rental, offer_key=of.key, state="ended", price=of.price, currency="USD", started_at=started,
        ended_at=started + timedelta(seconds=100), seen_at=started + timedelta(seconds=100), end_reason=reason,
    )  # fmt: skip
    async with town.database.transaction() as session:
        await rentals.observe(session, gone, now_us=await db_now(session))
    await Settler(town.services).step()


async def expenses(town: Any, rental: str) -> dict[str, int]:
    async with town.database.transaction() as session:
        assert [each for each in await audit.check(session) if each.severity == "error"] == []
        sums = await balances(session, rental=rental)
    return {
        each.account.removeprefix("Expenses:"): each.nano
        for each in sums
        if each.account.startswith("Expenses:") and each.nano
    }


@pytest.mark.own_writes
async def test_a_machine_that_booted_worked_and_waited_is_split_and_what_it_avoided_is_booked(town: Any) -> None:
    """100 s at $0.001: 20 to start, 50 of answers, 30 idle. On demand would have cost twice as much."""
    of = town.offer()
    await town.list_offers(of)
    batch = await town.batch()
    rental = await town.rental(of, purpose=(batch,), ran_s=100)
    async with town.database.transaction() as session:
        row, worker = await session.get_one(RentalRow, rental), await session.get_one(Worker, rental)
        assert row.started_us is not None
        worker.ready_us = row.started_us + 20_000_000
        row.purpose = {
            **row.purpose,
            "on_demand_nano_hour": 7_200_000_000,
            "api_nano_per_million": [1_000_000_000, 2_000_000_000],
        }
        shard = await session.scalar(select(col(Shard.id)).where(col(Shard.batch_id) == batch))
        session.add(
            Part(
                shard_id=shard, epoch=1, seq=1, batch_id=batch, placement_id=rental, key="k", size=1, sha256="0", lines=[[0, 1]],
                usage=b"[]", counters={"busy_ms": 50_000}, outcome="committed", counted=True,
                committed_us=row.started_us + 90_000_000,
                completed=4, prompt_tokens=30_000, completion_tokens=10_000, cached_tokens=5_000,
            )
        )  # fmt: skip
    await end(town, of, rental)
    milli = 1_000_000
    assert await expenses(town, rental) == {
        "Compute:OnDemand:Town": 50 * milli,
        "Startup:Town": 20 * milli,
        "Idle:Town": 30 * milli,
    }
    async with town.database.transaction() as session:
        assert await avoided_by(session, "default") == {"on_demand": 100 * milli, "api": 50 * milli - 100 * milli}
        found = await economics_of(session, await session.get_one(Batch, batch))
    assert (found.nano, found.billed_ms, found.busy_ms) == (100 * milli, 100_000, 50_000)
    assert (found.tokens.fresh_input, found.tokens.cached_input, found.tokens.output) == (25_000, 5_000, 10_000)
    assert found.units.per_million_output == 10_000 * milli


async def test_a_machine_that_was_taken_away_loses_what_it_had_not_committed(town: Any) -> None:
    of = town.offer()
    await town.list_offers(of)
    rental = await town.rental(of, purpose=(await town.batch(),), ran_s=100)
    async with town.database.transaction() as session:
        row = await session.get_one(RentalRow, rental)
        (await session.get_one(Worker, rental)).ready_us = row.started_us
    await end(town, of, rental, reason="preempted")
    assert await expenses(town, rental) == {"Lost:Preempted:Town": 100_000_000}


def test_the_same_machine_on_demand_comes_before_a_cheaper_one_elsewhere(town: Any) -> None:
    chosen, same, other = town.offer("one", price="1"), town.offer("one", price="3"), town.offer("two", price="2")
    assert baselines(chosen, [same, other], "tiny") == {"on_demand_nano_hour": 3 * 10**9}
    assert baselines(chosen, [other], "tiny") == {"on_demand_nano_hour": 2 * 10**9, "on_demand_elsewhere": True}
    assert baselines(chosen, [], "tiny") == {}
    assert chosen.price == Decimal("1")
