"""What the finaliser is to compose: read from part rows only, and checked against the counts before a byte is read."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from typing import Literal

import msgspec
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from jobs import ranges
from jobs.commits import usage_of
from jobs.errors import BatchNotFound, CountsDisagree
from jobs.tables import Batch, Part, Shard
from jobs.types import TERMINAL, Ranges

OWN_PLACEMENT = "broker"  # whose parts these are: the broker answered lines itself (invalid, reused, repeated)


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
    """A shard with its counted parts in the order of their commits, and the bytes of its input."""

    number: int
    first_idx: int
    lines: int
    start: int
    stop: int
    sha256: str
    done: Ranges
    parts: tuple[FinalPart, ...]

    @property
    def undone(self) -> Ranges:
        return ranges.difference(((self.first_idx, self.first_idx + self.lines),), self.done)


class FinalPlan(msgspec.Struct, frozen=True, kw_only=True):
    """A closed batch, ready to be composed. `version` is the batch's: `finish` refuses a plan that is out of date.

    `commit_order` are all parts in the order in which they were committed.
    """

    batch_id: str
    project: str
    version: int
    ending: Literal["completed", "expired", "cancelled"]
    line_order: Literal["input", "completion"]
    input_key: str
    total: int
    completed: int
    failed: int
    shards: tuple[FinalShard, ...]
    commit_order: tuple[FinalPart, ...]

    def sha256(self) -> str:
        """Names what is composed: the same parts, ending and order give the same bytes and the same name."""
        digest = hashlib.sha256(f"{self.batch_id} {self.ending} {self.line_order}\n".encode())
        for part in self.commit_order:
            digest.update(f"{part.shard_id} {part.epoch} {part.seq} {part.sha256}\n".encode())
        return digest.hexdigest()


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
    shards = list(
        await session.scalars(select(Shard).where(col(Shard.batch_id) == batch_id).order_by(col(Shard.number)))
    )
    numbers = {shard.id: shard.number for shard in shards}
    parts = [_final_part(row, numbers[row.shard_id]) for row in await _counted(session, batch_id)]
    by_shard: dict[int, list[FinalPart]] = defaultdict(list)
    for part in parts:
        by_shard[part.shard_number].append(part)
    plan = FinalPlan(
        batch_id=batch.id,
        project=batch.project,
        version=batch.version,
        ending=batch.ending,  # type: ignore[arg-type]  # the column holds what decide() returned
        line_order=batch.line_order,  # type: ignore[arg-type]
        input_key=batch.input_key,
        total=batch.total,
        completed=batch.completed,
        failed=batch.failed,
        shards=tuple(_final_shard(shard, by_shard[shard.number]) for shard in shards),
        commit_order=tuple(parts),
    )
    _check_counts(plan)
    return plan


async def _counted(session: AsyncSession, batch_id: str) -> Sequence[Part]:
    statement = (
        select(Part)
        .where(col(Part.batch_id) == batch_id, col(Part.counted).is_(True))
        .order_by(col(Part.committed_us), col(Part.shard_id), col(Part.epoch), col(Part.seq))
    )
    return (await session.scalars(statement)).all()


def _final_part(row: Part, shard_number: int) -> FinalPart:
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
        failed=ranges.from_lines(usage.idx for usage in usage_of(row) if usage.status == "failed"),
    )


def _final_shard(shard: Shard, parts: list[FinalPart]) -> FinalShard:
    done = ranges.normal(pair for part in parts for pair in part.lines)
    in_parts = sum(ranges.count(part.lines) for part in parts)
    if in_parts != ranges.count(done):
        raise CountsDisagree(
            f"shard {shard.id}: {in_parts} lines in its parts, of which only {ranges.count(done)} are different ones"
        )
    if done != ranges.normal(shard.done):
        raise CountsDisagree(f"shard {shard.id}: its parts hold lines {list(done)}, its row says {shard.done}")
    return FinalShard(
        number=shard.number,
        first_idx=shard.first_idx,
        lines=shard.lines,
        start=shard.start,
        stop=shard.stop,
        sha256=shard.sha256,
        done=done,
        parts=tuple(parts),
    )


def _check_counts(plan: FinalPlan) -> None:
    lines = sum(shard.lines for shard in plan.shards)
    done = sum(ranges.count(shard.done) for shard in plan.shards)
    failed = sum(ranges.count(part.failed) for part in plan.commit_order)
    if (lines, done - failed, failed) != (plan.total, plan.completed, plan.failed):
        raise CountsDisagree(
            f"batch {plan.batch_id}: shards and parts hold {lines} lines, {done - failed} completed and {failed} failed; "
            f"its row says {plan.total}, {plan.completed} and {plan.failed}"
        )
    if plan.ending == "completed" and done != lines:
        raise CountsDisagree(
            f"batch {plan.batch_id} is to complete, but {lines - done} of {lines} lines have no answer"
        )
