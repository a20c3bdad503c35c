"""Pausing and changing: what is in flight is finished, nothing new starts, and going on costs nobody a second time."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import select
from sqlmodel import col

from jobs import changes, leases
from jobs.changes import Change
from jobs.errors import BadBatch, BadTransition
from jobs.tables import Batch, LeaseRow, OutboxEvent
from jobs.types import Lease

PROJECT = "acme"
DAY_US = 86_400 * 1_000_000


async def turn(room: Any, batch_id: str, event: str) -> None:
    async with room.database.transaction() as session:
        await getattr(changes, event)(session, PROJECT, batch_id)


async def change(room: Any, batch_id: str, **wanted: Any) -> Batch:
    async with room.database.transaction() as session:
        return await changes.change(session, PROJECT, batch_id, Change(**wanted))


async def drop(room: Any, *named: Lease) -> int:
    """A heartbeat of placement `one` that names these leases."""
    async with room.database.transaction() as session:
        kept = {(each.shard_id, each.epoch) for each in named}
        return await leases.end_dropped(session, placement_id="one", named=kept)


async def events(room: Any, batch_id: str, *kinds: str) -> list[OutboxEvent]:
    async with room.database.transaction() as session:
        query = select(OutboxEvent).where(col(OutboxEvent.batch_id) == batch_id, col(OutboxEvent.kind).in_(kinds))
        return list(await session.scalars(query.order_by(col(OutboxEvent.id))))


async def test_a_paused_batch_gives_no_lease_and_goes_on_when_resumed(room: Any) -> None:
    batch = await room.batch()
    for _ in range(2):
        await turn(room, batch, "pause")
    assert await room.try_lease(batch) is None
    await turn(room, batch, "resume")
    assert await room.try_lease(batch) is not None
    told = await events(room, batch, "batch.paused", "batch.resumed")
    assert [each.kind for each in told] == ["batch.paused", "batch.resumed"], "twice is once"


async def test_what_is_in_flight_at_a_pause_is_finished_and_counts(room: Any) -> None:
    batch = await room.batch()
    held = await room.lease(batch)
    await turn(room, batch, "pause")
    assert not await room.renew(held, in_flight=[0, 1]), "the holder must start nothing more"
    assert (await room.commit(held, [0, 1])).outcome == "committed"


async def test_a_shard_that_was_left_at_a_pause_is_free_at_once_not_when_its_lease_would_expire(room: Any) -> None:
    batch = await room.batch(3)
    held = await room.lease(batch)
    await turn(room, batch, "pause")
    await room.renew(held, in_flight=[0])
    await turn(room, batch, "resume")
    assert not await room.renew(held), "who was told to stop has let its lines go: it does not go on by itself"
    assert await drop(room, held) == 0
    assert await room.try_lease(batch, "two") is None, "its holder still commits what it has finished"
    await room.commit(held, [0])
    assert await drop(room) == 1
    again = await room.lease(batch, "two")
    assert (again.done, again.suspects) == (((0, 1),), {}), "nobody is blamed for a pause"


async def test_a_holder_that_heard_nothing_of_a_short_pause_just_goes_on(room: Any) -> None:
    batch = await room.batch()
    held = await room.lease(batch)
    await turn(room, batch, "pause")
    await turn(room, batch, "resume")
    assert await room.renew(held)
    assert await drop(room) == 0, "a lease that is not named because it came this moment is not let go"
    async with room.database.transaction() as session:
        assert (await session.get_one(LeaseRow, (held.shard_id, held.epoch))).ended_us is None


async def test_a_paused_batch_can_be_cancelled(room: Any) -> None:
    batch = await room.batch()
    await turn(room, batch, "pause")
    cancelled = await room.cancel(batch)
    assert (cancelled.status, cancelled.paused_us) == ("cancelling", None)
    with pytest.raises(BadTransition, match="is cancelling; only"):
        await turn(room, batch, "resume")


async def test_a_paused_batch_expires_and_publishes_what_is_done(room: Any) -> None:
    batch = await room.batch(3)
    await room.commit(await room.lease(batch), [1])
    await turn(room, batch, "pause")
    room.clock(25 * 3600)
    await room.advance()
    with pytest.raises(BadTransition, match="about to be expired"):
        await turn(room, batch, "resume")
    ended = await room.finalise(batch)
    assert (ended.status, ended.completed, ended.expired) == ("expired", 1, 2)
    assert [line["custom_id"] for line in await room.read(ended.output_file_id)] == ["id-1"]


async def test_a_deadline_may_move_within_thirty_days_and_never_into_the_past(room: Any) -> None:
    batch = await room.batch()
    created_us = (await room.get(batch)).created_us
    later = created_us + 3 * DAY_US
    assert (await change(room, batch, deadline_us=later)).expires_us == later, "later than its window of a day"
    assert (await change(room, batch, deadline_us=None)).expires_us == created_us + DAY_US
    for wrong in (created_us - 1, created_us + 31 * DAY_US):
        with pytest.raises(BadBatch, match="30 days"):
            await change(room, batch, deadline_us=wrong)
    await change(room, batch, deadline_us=later)
    room.clock(2 * 86_400)
    with pytest.raises(BadBatch, match="end of its window"):
        await change(room, batch, deadline_us=None)


async def test_a_change_is_told_once_and_names_what_changed(room: Any) -> None:
    batch = await room.batch()
    for _ in range(2):
        await change(room, batch, priority=7, max_usd="2.5")
    (told,) = await events(room, batch, "batch.changed")
    so_far = {"total": 6, "completed": 0, "failed": 0}
    assert told.payload == {"priority": 7, "max_usd": "2.5", "version": 2, **so_far}
