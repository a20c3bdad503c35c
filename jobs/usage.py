"""Metered usage of committed work, by placement and batch: what costs are allotted by, and a batch's `usage`."""

from __future__ import annotations

from collections.abc import AsyncIterator

import msgspec
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from jobs.commits import usage_of
from jobs.tables import Part
from jobs.types import LineUsage


class PartUsage(msgspec.Struct, frozen=True, kw_only=True):
    """The lines of one part. `is_counted` False: the work was done and paid for, but these answers are not in the output
    (lines that another part had answered first, or a part that was withdrawn)."""

    placement_id: str
    batch_id: str
    shard_id: str
    epoch: int
    seq: int
    committed_us: int
    is_counted: bool
    lines: tuple[LineUsage, ...]


async def part_usage(
    session: AsyncSession, *, placement_id: str | None = None, batch_id: str | None = None
) -> AsyncIterator[PartUsage]:
    """All parts of a placement, of a batch, or of a batch on a placement, in a fixed order, one row in memory at a time."""
    statement = select(Part).order_by(col(Part.batch_id), col(Part.shard_id), col(Part.epoch), col(Part.seq))
    if placement_id is not None:
        statement = statement.where(col(Part.placement_id) == placement_id)
    if batch_id is not None:
        statement = statement.where(col(Part.batch_id) == batch_id)
    rows = await session.stream_scalars(statement.execution_options(yield_per=100))
    async for row in rows:
        yield PartUsage(
            placement_id=row.placement_id,
            batch_id=row.batch_id,
            shard_id=row.shard_id,
            epoch=row.epoch,
            seq=row.seq,
            committed_us=row.committed_us,
            is_counted=row.counted,
            lines=usage_of(row),
        )
