"""Which plans are kept: each has the whole snapshot that led to it, megabytes of a large queue, one whenever the plan changes."""

from __future__ import annotations

from sqlalchemy import delete, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from broker.tables import Assignment, PlanRow, Waiting
from jobs.tables import Batch
from jobs.types import TERMINAL
from markets import rentals


async def forget_plans(session: AsyncSession, *, keep: int, limit: int) -> int:
    """Remove plans older than the newest `keep`, but for those that an open batch is explained by or that an open rental was
    placed by. At most `limit` at a time, the oldest first; returns how many."""
    created = col(PlanRow.created_us)
    newest_us = await session.scalar(select(created).order_by(created.desc()).offset(keep - 1).limit(1))
    if newest_us is None:
        return 0
    live = select(col(Batch.id)).where(col(Batch.status).not_in(TERMINAL))
    placed_by = [row.purpose.get("plan") for row in await rentals.open_rentals(session)]
    old = (
        select(col(PlanRow.id))
        .where(created < newest_us)
        .where(col(PlanRow.id).not_in(select(col(Assignment.plan)).where(col(Assignment.batch).in_(live))))
        .where(col(PlanRow.id).not_in(select(col(Waiting.plan)).where(col(Waiting.batch).in_(live))))
        .where(col(PlanRow.id).not_in([plan for plan in placed_by if plan]))
        .order_by(created)
        .limit(limit)
    )
    doomed = (await session.scalars(old)).all()
    if doomed:
        gone = delete(PlanRow).where(col(PlanRow.id).in_(doomed))
        await session.execute(gone.execution_options(synchronize_session=False))
    return len(doomed)
