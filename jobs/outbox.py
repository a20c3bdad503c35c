"""Events written in the transaction of the change they tell of, delivered afterwards at least once.

Kinds: `batch.<status>` for each change of status, `batch.paused`, `batch.resumed`, `batch.changed` (limit, priority or
deadline), `batch.approved`, `batch.rejected`, `batch.waiting` (why it does not move, each time that this changes),
`part.committed`, `part.withdrawn`. Payloads hold ids and numbers only. A reader that dies between `undelivered` and
`delivered` sees the event again, under the same id.

Events of one batch are numbered from 1 under its row lock, which is held until the commit. So number n is visible before
n + 1 is given, on PostgreSQL too: a reader that remembers the last number it saw misses nothing and sees nothing twice,
whatever the clocks of the replicas that made the ids.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from sqlalchemy import delete, func, select, update
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from jobs import ids
from jobs.tables import Batch, OutboxEvent
from jobs.types import TERMINAL

_TOLD = "jobs.outbox.told"


def append(session: AsyncSession, batch: Batch, kind: str, payload: dict[str, Any], now_us: int) -> None:
    """Write an event of a batch whose row is locked (`transitions.locked`) or new in this transaction.

    Its payload says also how far the batch is now: `total`, `completed` and `failed` lines. Without the lock, two
    transactions give the same number, and the database refuses the second.
    """
    batch.events += 1
    counts = {"total": batch.total, "completed": batch.completed, "failed": batch.failed}
    session.add(
        OutboxEvent(
            id=ids.event_id(),
            number=batch.events,
            kind=kind,
            batch_id=batch.id,
            project=batch.project,
            payload={**payload, **counts},
            created_us=now_us,
        )
    )
    session.info.setdefault(_TOLD, set()).add((batch.id, kind))


def told(session: AsyncSession) -> frozenset[tuple[str, str]]:
    """Of which batch which kinds of events this session's transaction wrote."""
    return frozenset(session.info.get(_TOLD, ()))


async def after(session: AsyncSession, batch_id: str, number: int, limit: int) -> list[OutboxEvent]:
    """The events of a batch after its `number`th, in order, at most `limit`."""
    statement = select(OutboxEvent).where(col(OutboxEvent.batch_id) == batch_id, col(OutboxEvent.number) > number)
    return list(await session.scalars(statement.order_by(col(OutboxEvent.number)).limit(limit)))


async def number_of(session: AsyncSession, batch_id: str, event_id: str) -> int | None:
    """Which event of the batch this is; None when there is no such event of it (any more)."""
    statement = select(col(OutboxEvent.number)).where(
        col(OutboxEvent.id) == event_id, col(OutboxEvent.batch_id) == batch_id
    )
    number: int | None = await session.scalar(statement)
    return number


async def newest(session: AsyncSession, batch_ids: Collection[str]) -> dict[str, int]:
    """The number of each batch's newest event."""
    rows = await session.execute(select(col(Batch.id), col(Batch.events)).where(col(Batch.id).in_(batch_ids)))
    return {batch_id: int(number) for batch_id, number in rows}


async def undelivered(session: AsyncSession, limit: int = 100) -> list[OutboxEvent]:
    """The oldest events that nobody has confirmed, locked so that two relays do not take the same ones."""
    statement = (
        select(OutboxEvent)
        .where(col(OutboxEvent.delivered_us).is_(None))
        .order_by(col(OutboxEvent.id))
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    return list(await session.scalars(statement))


async def delivered(session: AsyncSession, event_ids: Sequence[str], now_us: int) -> None:
    await session.execute(update(OutboxEvent).where(col(OutboxEvent.id).in_(event_ids)).values(delivered_us=now_us))


async def waiting(session: AsyncSession) -> int:
    """How many events nobody has confirmed."""
    statement = select(func.count()).select_from(OutboxEvent).where(col(OutboxEvent.delivered_us).is_(None))
    return int(await session.scalar(statement) or 0)


async def prune(session: AsyncSession, before_us: int, limit: int) -> int:
    """Forget up to `limit` confirmed events from before `before_us`, of batches that have ended; how many it were."""
    old = (
        select(col(OutboxEvent.id))
        .join(Batch, col(Batch.id) == col(OutboxEvent.batch_id))
        .where(
            col(OutboxEvent.created_us) < before_us,
            col(OutboxEvent.delivered_us).is_not(None),
            col(Batch.status).in_(TERMINAL),
        )
        .limit(limit)
    )
    event_ids = list(await session.scalars(old))
    await session.execute(delete(OutboxEvent).where(col(OutboxEvent.id).in_(event_ids)))
    return len(event_ids)
