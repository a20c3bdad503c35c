"""`max_usd`: never more, never rented in vain, and a batch at its limit says so and stays there."""

from __future__ import annotations

from typing import Any

import pytest

from broker.control.accrue import Accruer
from broker.control.explain import explanation
from broker.control.limit_change import limit_changed
from broker.control.plan import Planner
from broker.control.snapshot import freeze
from broker.tables import STOPPED, Worker
from jobs import changes
from jobs.clock import db_now
from jobs.tables import Batch
from markets.tables import RentalRow


async def accrue(town: Any) -> None:
    await Accruer(town.services).step()


async def test_a_limit_that_pays_the_work_but_not_the_stop_rents_nothing(town: Any) -> None:
    """It was rented and stopped at once, seven times in eight seconds, until all its money was gone without one answer."""
    await town.list_offers(town.offer())
    batch = await town.batch(lines=5, max_usd="0.010")  # 8 s of work and start; stopping takes up to 16 s
    await Planner(town.services).step()
    assert await town.intents() == []
    waiting = await town.waiting(batch)
    assert waiting is not None
    assert waiting.waiting_on == "price_ceiling"
    assert "to be stopped in time" in waiting.reasons[0]


async def test_a_limit_with_room_for_the_stop_is_rented_and_left_alone(town: Any) -> None:
    of = town.offer()
    await town.list_offers(of)
    batch = await town.batch(lines=5, max_usd="0.040")
    await Planner(town.services).step()
    assert len(await town.intents()) == 1
    rental = await town.rental(of, purpose=(batch,), ran_s=2)
    await accrue(town)
    assert (await town.row(Worker, rental)).drain_reason is None


async def test_a_machine_that_was_rented_for_another_batch_counts_against_the_limit_too(town: Any) -> None:
    of = town.offer()
    await town.list_offers(of)
    first, second = await town.batch(), await town.batch(max_usd="0.010")
    rental = await town.rental(of, purpose=(first,), ran_s=2)
    await town.assign(first, of)
    await town.assign(second, of)
    await accrue(town)
    assert "max_usd" in (await town.row(Worker, rental)).drain_reason


async def test_a_batch_at_its_limit_stays_stopped_and_says_why(town: Any) -> None:
    of = town.offer()
    await town.list_offers(of)
    batch = await town.batch(max_usd="0.100")
    await town.assign(batch, of)
    rental = await town.rental(of, purpose=(batch,), ran_s=90)
    await accrue(town)
    assert (await town.row(Worker, rental)).drain_reason
    planner = Planner(town.services)
    for _ in range(2):
        await planner.step()
    assert await town.intents() == []
    assert await town.assigned(batch) == []
    async with town.database.transaction() as session:
        frozen = await freeze(session, town.services, now_us=await db_now(session))
    assert frozen.snapshot.works == (), "what does not go on must not take capacity from others either"
    waiting = await town.waiting(batch)
    assert waiting is not None
    assert (waiting.plan, waiting.waiting_on) == (STOPPED, "price_ceiling")
    async with town.database.transaction() as session:
        told = await explanation(session, batch)
    assert told.waiting_on == "price_ceiling"
    assert "$0.09 of $0.1 spent" in told.reasons[0]


async def test_a_worker_that_does_not_drain_in_time_is_released(town: Any) -> None:
    of = town.offer()
    await town.list_offers(of)
    batch = await town.batch(max_usd="0.100")
    rental = await town.rental(of, purpose=(batch,), ran_s=95)
    await accrue(town)
    row = await town.row(RentalRow, rental)
    assert row.state == "releasing"
    assert "max_usd" in row.release_reason


@pytest.mark.parametrize("is_shared", [False, True])
async def test_an_ended_batch_pays_no_idle_machine_beyond_its_limit(town: Any, is_shared: bool) -> None:
    """Unless another batch works on it: that one will bear its share."""
    of = town.offer()
    await town.list_offers(of)
    batch = await town.batch(max_usd="0.100")
    rental = await town.rental(of, purpose=(batch,), ran_s=90)
    if is_shared:
        await town.assign(await town.batch(), of)
    async with town.database.transaction() as session:
        ended = await session.get_one(Batch, batch)
        ended.status, ended.ending = "completed", "completed"
    await accrue(town)
    assert bool((await town.row(Worker, rental)).drain_reason) is not is_shared


async def patched(town: Any, batch: str, max_usd: str | None) -> None:
    async with town.database.transaction() as session:
        row = await changes.change(session, "default", batch, changes.Change(max_usd=max_usd))
        await limit_changed(session, row, await db_now(session))


async def test_a_stopped_batch_goes_on_when_its_limit_is_raised(town: Any) -> None:
    of = town.offer()
    await town.list_offers(of)
    batch = await town.batch(max_usd="0.100")
    await town.assign(batch, of)
    await town.rental(of, purpose=(batch,), ran_s=90)
    await accrue(town)
    assert (await town.waiting(batch)).plan == STOPPED
    await patched(town, batch, "1.00")
    await Planner(town.services).step()
    assert await town.assigned(batch) == [str(of.key)]
    assert await town.waiting(batch) is None


async def test_a_limit_below_what_is_spent_stops_the_batch_and_says_so(town: Any) -> None:
    of = town.offer()
    await town.list_offers(of)
    batch = await town.batch(max_usd="1.00")
    await town.assign(batch, of)
    rental = await town.rental(of, purpose=(batch,), ran_s=90)
    await accrue(town)
    await patched(town, batch, "0.05")
    waiting = await town.waiting(batch)
    assert (waiting.plan, waiting.waiting_on) == (STOPPED, "price_ceiling")
    assert "$0.09 is spent already" in waiting.reasons[0]
    await accrue(town)
    assert (await town.row(Worker, rental)).drain_reason
