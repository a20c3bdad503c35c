"""The counted parts of a plan, read from their rows while it is composed: a shard or a page at a time, never all.

Each read is a short transaction of its own, so that commits go on meanwhile. A part that was committed after the plan
was loaded is left out: counted parts are disjoint, so a part belongs to the plan just when its lines are done there.
"""

from __future__ import annotations

from array import array
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from typing import TypeAlias

from sqlalchemy import select, tuple_
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from jobs import ranges
from jobs.commits import usage_of
from jobs.errors import BadTransition
from jobs.final_plan import FinalPart, FinalPlan, FinalShard
from jobs.tables import Part

Transaction: TypeAlias = Callable[[], AbstractAsyncContextManager[AsyncSession]]
PAGE_PARTS = 100  # rows in memory at a time, each with the usage of its lines


class PartRows:
    """The parts of one plan. `transaction` begins and ends one (broker/database.py); nothing else is done inside."""

    def __init__(self, transaction: Transaction, plan: FinalPlan) -> None:
        self._transaction = transaction
        self._plan = plan

    async def of_shard(self, shard: FinalShard) -> list[FinalPart]:
        """The shard's parts, in the order of their commits. Raises BadTransition when some are withdrawn since."""
        statement = (
            select(Part)
            .where(col(Part.shard_id) == shard.id, col(Part.counted).is_(True))
            .order_by(col(Part.committed_us), col(Part.epoch), col(Part.seq))
        )
        async with self._transaction() as session:
            rows = await session.scalars(statement)
            parts = [final_part(row, shard.number) for row in rows if ranges.contains(shard.done, row.lines)]
        self._check(sum(ranges.count(part.lines) for part in parts), ranges.count(shard.done))
        return parts

    async def in_commit_order(self) -> AsyncIterator[FinalPart]:
        """All parts in the order in which they were committed. Raises BadTransition when some are withdrawn since."""
        shards = {shard.id: shard for shard in self._plan.shards}
        found = 0
        async for row in self._rows_in_commit_order():
            shard = shards[row.shard_id]
            if ranges.contains(shard.done, row.lines):
                part = final_part(row, shard.number)
                found += ranges.count(part.lines)
                yield part
        self._check(found, sum(ranges.count(shard.done) for shard in self._plan.shards))

    async def _rows_in_commit_order(self) -> AsyncIterator[Part]:
        """The order is read once, as three numbers a part; the rows follow page by page."""
        numbers = {shard.id: at for at, shard in enumerate(self._plan.shards)}
        order = array("q")
        key = (col(Part.shard_id), col(Part.epoch), col(Part.seq))
        statement = (
            select(*key)
            .where(col(Part.batch_id) == self._plan.batch_id, col(Part.counted).is_(True))
            .order_by(col(Part.committed_us), *key)
        )
        async with self._transaction() as session:
            async for shard_id, epoch, seq in await session.stream(statement.execution_options(yield_per=1000)):
                order.extend((numbers[shard_id], epoch, seq))
        for at in range(0, len(order), 3 * PAGE_PARTS):
            page = order[at : at + 3 * PAGE_PARTS]
            keys = [(self._plan.shards[page[n]].id, page[n + 1], page[n + 2]) for n in range(0, len(page), 3)]
            async with self._transaction() as session:
                rows = await session.scalars(select(Part).where(tuple_(*key).in_(keys)))
                by_key = {(row.shard_id, row.epoch, row.seq): row for row in rows}
            for each in keys:
                yield by_key[each]

    def _check(self, found: int, expected: int) -> None:
        if found != expected:
            raise BadTransition(f"batch {self._plan.batch_id} changed while it was composed; compose it again")


def final_part(row: Part, shard_number: int) -> FinalPart:
    """A counted part row as the composer needs it."""
    return FinalPart(
        shard_number=shard_number,
        shard_id=row.shard_id,
        epoch=row.epoch,
        seq=row.seq,
        placement_id=row.placement_id,
        key=row.key,
        size=row.size,
        sha256=row.sha256,
        lines=ranges.normal(row.lines),
        failed=ranges.from_lines(usage.idx for usage in usage_of(row) if usage.status == "failed")
        if row.failed
        else (),
    )
