"""Why a batch waits is told when it changes, once, and shown the same way."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import select, update
from sqlmodel import col

from broker.api.batch_view import batch_shapes
from broker.control.plan import Planner
from broker.control.watch import Watcher
from broker.tables import Worker
from jobs import changes, leases
from jobs.tables import Batch, OutboxEvent
from markets.tables import RentalRow

SECOND_US = 1_000_000


async def told(town: Any, batch: str) -> list[str | None]:
    """What was told of the batch so far, after one more look."""
    await Watcher(town.services).step()
    async with town.database.transaction() as session:
        query = select(OutboxEvent).where(col(OutboxEvent.batch_id) == batch, col(OutboxEvent.kind) == "batch.waiting")
        return [each.payload["on"] for each in await session.scalars(query.order_by(col(OutboxEvent.id)))]


async def shown(town: Any, batch: str) -> Any:
    async with town.database.transaction() as session:
        return (await batch_shapes(session, [await session.get_one(Batch, batch)]))[0].x_broker


async def test_each_cause_is_told_once_on_the_way_to_the_first_line(town: Any) -> None:
    of = town.offer()
    batch = await town.batch(begun=False)
    assert await told(town, batch) == ["validation"]
    batch = await town.batch()
    for _ in range(2):
        assert await told(town, batch) == ["planning"]
    await Planner(town.services).step()
    assert await told(town, batch) == ["planning", "capacity"], "no offer is listed at all"
    await town.list_offers(of)
    await Planner(town.services).step()
    assert await told(town, batch) == ["planning", "capacity", "start"]
    rental = await town.rental(of, purpose=(batch,))
    assert (await told(town, batch))[-1] == "start"
    async with town.database.transaction() as session:
        await leases.lease(session, placement_id=rental, batch_ids=[batch], ttl_s=60)
    assert await told(town, batch) == ["planning", "capacity", "start", None]
    assert (await shown(town, batch)).waiting is None
    async with town.database.transaction() as session:
        await changes.pause(session, "default", batch)
    assert (await told(town, batch))[-2:] == [None, "paused"]


async def test_what_is_shown_is_consistent_and_has_an_end(town: Any) -> None:
    batch = await town.batch()
    await Planner(town.services).step()
    await Watcher(town.services).step()
    first = await shown(town, batch)
    assert (first.waiting.on, first.waiting_on, first.waiting_reasons) == (
        "capacity",
        "capacity",
        first.waiting.reasons,
    )
    assert first.eta == first.waiting.eta
    town.database.clock_offset_us = 100 * SECOND_US
    await Planner(town.services).step()
    assert (await shown(town, batch)).waiting.since == first.waiting.since, "the same cause goes on since when it began"


@pytest.mark.own_writes
async def test_a_start_that_failed_says_until_when_its_offer_is_held_back(town: Any) -> None:
    of = town.offer()
    await town.list_offers(of)
    batch = await town.batch()
    rental = await town.rental(of, purpose=(batch,))
    async with town.database.transaction() as session:
        worker = await session.get_one(Worker, rental)
        worker.state, worker.ready_us, worker.gone_us = "failed", None, worker.hello_us
        await session.execute(update(RentalRow).where(col(RentalRow.id) == rental).values(state="ended", settled=True))
    await Planner(town.services).step()
    waiting = (await shown(town, batch)).waiting
    assert waiting.on == "start"
    assert "failed 1 times in the last hour; held back for" in waiting.reasons[0]


async def test_a_batch_whose_policy_is_lost_says_so(town: Any) -> None:
    await town.list_offers(town.offer())
    batch = await town.batch()
    async with town.database.transaction() as session:
        (await session.get_one(Batch, batch)).policy_hash = "lost"
    await Planner(town.services).step()
    assert (await shown(town, batch)).waiting.on == "residency"


async def test_a_broker_that_starts_anew_does_not_tell_it_again_and_forgets_what_has_ended(town: Any) -> None:
    batch = await town.batch()
    await Planner(town.services).step()
    assert len(await told(town, batch)) == len(await told(town, batch)) == 1
    async with town.database.transaction() as session:
        ended = await session.get_one(Batch, batch)
        ended.status, ended.ending = "completed", "completed"
    assert len(await told(town, batch)) == 1
    assert (await shown(town, batch)).waiting is None
