"""Events written in the transaction of the change they tell of, delivered afterwards at least once.

Kinds: `batch.<status>` for each change of status, `batch.paused`, `batch.resumed`, `batch.changed` (limit, priority or
deadline), `batch.waiting` (why it does not move, each time that this changes), `part.committed`, `part.withdrawn`.
Payloads hold ids and numbers only. A reader that dies between `undelivered` and `delivered` sees the event again, under
the same id.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from jobs import ids
from jobs.tables import Batch, OutboxEvent


def append(session: AsyncSession, batch: Batch, kind: str, payload: dict[str, Any], now_us: int) -> None:
    session.add(
        OutboxEvent(
            id=ids.event_id(), kind=kind, batch_id=batch.id, project=batch.project, payload=payload, created_us=now_us
        )
    )


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
