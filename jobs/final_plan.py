"""What is to be composed of a batch: read from part rows only, and checked against the counts before a byte is read.

A plan holds a few numbers a shard and no part: those are read again, shard by shard, while the files are written
(`jobs.part_rows`), so that a million lines need no more memory than a thousand.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from typing import Literal

import msgspec
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from jobs import ranges
from jobs.errors import BatchNotFound, CountsDisagree
from jobs.state import Ending
from jobs.tables import Batch, Part, Shard
from jobs.types import TERMINAL, Ranges

OWN_PLACEMENT = "broker"  # whose parts these are: the broker answered lines itself (invalid, reused, repeated)

LineOrder = Literal["input", "completion"]


class FinalPart(msgspec.Struct, frozen=True, kw_only=True):
    """A counted part: the object, its lines, and which of them failed (the others completed)."""

    shard_number: int
    shard_id: str
    epoch: int
    seq: int
    placement_id: str
    key: str
    size: int
    sha256: str
    lines: Ranges
    failed: Ranges

    @property
    def is_own(self) -> bool:
        """The broker answered these lines itself."""
        return self.placement_id == OWN_PLACEMENT


class FinalShard(msgspec.Struct, frozen=True, kw_only=True):
    """A shard: the bytes of its input, the lines that are answered, and how many of those failed."""

    id: str
    number: int
    first_idx: int
    lines: int
    start: int
    stop: int
    sha256: str
    done: Ranges
    failed: int

    @property
    def undone(self) -> Ranges:
        return ranges.difference(((self.first_idx, self.first_idx + self.lines),), self.done)

    @property
    def completed(self) -> int:
        return ranges.count(self.done) - self.failed


class FinalPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What a batch consists of at one moment. `version` is the batch's: `finish` refuses a plan that is out of date.

    `ending` says what becomes of the lines without an answer; None while they may still get one. `is_published`: the
    batch has ended, so its parts were held against the input, which may be gone since. `parts_sha256` is over the
    counted parts.
    """

    batch_id: str
    project: str
    version: int
    ending: Ending | None
    is_published: bool
    line_order: LineOrder
    input_key: str
    total: int
    completed: int
    failed: int
    shards: tuple[FinalShard, ...]
    parts_sha256: str

    def sha256(self) -> str:
        """Names what is composed: the same parts, ending and order give the same bytes and the same name."""
        text = f"{self.batch_id} {self.ending} {self.line_order}\n{self.parts_sha256}"
        return hashlib.sha256(text.encode()).hexdigest()


async def load_final_plan(session: AsyncSession, batch_id: str) -> FinalPlan | None:
    """The plan of a closed batch; None when it is not closed, or has ended already.

    Raises BatchNotFound, and CountsDisagree when the parts' lines overlap, or differ from the shards' or the batch's
    counts: such a batch is not published.
    """
    batch = await session.get(Batch, batch_id)
    if batch is None:
        raise BatchNotFound(f"no batch {batch_id}")
    if batch.ending is None or batch.status in TERMINAL:
        return None
    plan = await load_plan(session, batch, ending=batch.ending)  # type: ignore[arg-type]  # what decide() returned
    done = sum(ranges.count(shard.done) for shard in plan.shards)
    if plan.ending == "completed" and done != plan.total:
        raise CountsDisagree(
            f"batch {plan.batch_id} is to complete, but {plan.total - done} of {plan.total} lines have no answer"
        )
    return plan


async def load_plan(
    session: AsyncSession, batch: Batch, *, ending: Ending | None, line_order: LineOrder | None = None
) -> FinalPlan:
    """What a batch in any state consists of now, in its own order or in `line_order`. Raises CountsDisagree."""
    digest = hashlib.sha256()
    rows = await session.scalars(select(Shard).where(col(Shard.batch_id) == batch.id).order_by(col(Shard.number)))
    by_id = {row.id: row for row in rows}
    found = {each.shard_id: _final_shard(by_id[each.shard_id], each) async for each in _sums(session, batch.id, digest)}
    shards = tuple(found.get(row.id) or _final_shard(row, None) for row in by_id.values())
    plan = FinalPlan(
        batch_id=batch.id,
        project=batch.project,
        version=batch.version,
        ending=ending,
        is_published=batch.status in TERMINAL,
        line_order=line_order or batch.line_order,  # type: ignore[arg-type]
        input_key=batch.input_key,
        total=batch.total,
        completed=batch.completed,
        failed=batch.failed,
        shards=shards,
        parts_sha256=digest.hexdigest(),
    )
    _check_counts(plan)
    return plan


class _Sum(msgspec.Struct):
    """The counted parts of one shard: their ranges as they are, and how many lines failed."""

    shard_id: str
    pairs: list[list[int]] = []
    failed: int = 0


async def _sums(session: AsyncSession, batch_id: str, digest: hashlib._Hash) -> AsyncIterator[_Sum]:
    """One sum for each shard that has a counted part. Feeds `digest` with what identifies the parts."""
    statement = (
        select(col(Part.shard_id), col(Part.epoch), col(Part.seq), col(Part.sha256), col(Part.lines), col(Part.failed))
        .where(col(Part.batch_id) == batch_id, col(Part.counted).is_(True))
        .order_by(col(Part.shard_id), col(Part.epoch), col(Part.seq))
    )
    rows = await session.stream(statement.execution_options(yield_per=500))
    current: _Sum | None = None
    async for shard_id, epoch, seq, sha256, lines, failed in rows:
        digest.update(f"{shard_id} {epoch} {seq} {sha256}\n".encode())
        if current is None or current.shard_id != shard_id:
            if current is not None:
                yield current
            current = _Sum(shard_id)
        current.pairs += lines
        current.failed += failed
    if current is not None:
        yield current


def _final_shard(shard: Shard, found: _Sum | None) -> FinalShard:
    found = found or _Sum(shard.id)
    in_parts, done = ranges.count(found.pairs), ranges.normal(found.pairs)
    if in_parts != ranges.count(done):
        raise CountsDisagree(
            f"shard {shard.id}: {in_parts} lines in its parts, of which only {ranges.count(done)} are different ones"
        )
    if done != ranges.normal(shard.done):
        raise CountsDisagree(f"shard {shard.id}: its parts hold lines {list(done)}, its row says {shard.done}")
    return FinalShard(
        id=shard.id,
        number=shard.number,
        first_idx=shard.first_idx,
        lines=shard.lines,
        start=shard.start,
        stop=shard.stop,
        sha256=shard.sha256,
        done=done,
        failed=found.failed,
    )


def _check_counts(plan: FinalPlan) -> None:
    lines = sum(shard.lines for shard in plan.shards)
    completed = sum(shard.completed for shard in plan.shards)
    failed = sum(shard.failed for shard in plan.shards)
    if (lines, completed, failed) != (plan.total, plan.completed, plan.failed):
        raise CountsDisagree(
            f"batch {plan.batch_id}: shards and parts hold {lines} lines, {completed} completed and {failed} failed; "
            f"its row says {plan.total}, {plan.completed} and {plan.failed}"
        )
