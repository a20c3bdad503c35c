"""A batch's shards as people see them: how far each is, who holds it, and whether a line in it kills workers."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from jobs.files import Page, page_of
from jobs.tables import Shard


async def list_shards(session: AsyncSession, batch_id: str, *, after: int = -1, limit: int = 100) -> Page[Shard]:
    """By number, those behind number `after`."""
    statement = select(Shard).where(col(Shard.batch_id) == batch_id, col(Shard.number) > after)
    rows = await session.scalars(statement.order_by(col(Shard.number)).limit(limit + 1))
    return page_of(list(rows), limit)
