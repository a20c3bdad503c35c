"""What a placement's answers took, in tokens: of each line that a lease asked for once, whether or not its answer counts.

Answers that came too late were paid for all the same, be it that another had answered, that the batch had ended or that the
placement was revoked. A part that overlaps is cut anew without what was answered before,
so its row and its successor's hold the same lines: of one lease each line is metered once.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

import msgspec
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from jobs import ranges
from jobs.commits import PAID_FOR, usage_of
from jobs.tables import Part
from jobs.types import LineUsage, Ranges


class TokensUsed(msgspec.Struct, frozen=True, kw_only=True):
    """Cached tokens are part of the prompt's."""

    prompt: int = 0
    cached: int = 0
    completion: int = 0

    def __add__(self, other: TokensUsed) -> TokensUsed:
        return TokensUsed(
            prompt=self.prompt + other.prompt,
            cached=self.cached + other.cached,
            completion=self.completion + other.completion,
        )

    @property
    def total(self) -> int:
        return self.prompt + self.completion


class Metered(msgspec.Struct, frozen=True, kw_only=True):
    """`counted` is of answers in the output, `wasted` of those that are not."""

    counted: TokensUsed = TokensUsed()
    wasted: TokensUsed = TokensUsed()

    @property
    def whole(self) -> TokensUsed:
        return self.counted + self.wasted


async def metered(session: AsyncSession, placements: Collection[str]) -> dict[str, dict[str, Metered]]:
    """By placement and batch."""
    sums = (
        select(
            col(Part.placement_id),
            col(Part.batch_id),
            col(Part.counted),
            func.sum(col(Part.prompt_tokens)),
            func.sum(col(Part.cached_tokens)),
            func.sum(col(Part.completion_tokens)),
        )
        .where(col(Part.placement_id).in_(placements), col(Part.outcome).not_in(PAID_FOR))
        .group_by(col(Part.placement_id), col(Part.batch_id), col(Part.counted))
    )
    found: dict[str, dict[str, Metered]] = {}
    for placement, batch, counted, prompt, cached, completion in (await session.execute(sums)).all():
        used = TokensUsed(prompt=int(prompt), cached=min(int(cached), int(prompt)), completion=int(completion))
        of = found.setdefault(placement, {})
        before = of.get(batch, Metered())
        of[batch] = msgspec.structs.replace(before, **({"counted": used} if counted else {"wasted": used}))
    late = select(Part).where(col(Part.placement_id).in_(placements), col(Part.outcome).in_(PAID_FOR))
    seen: dict[tuple[str, int], Ranges] = {}
    for row in (await session.scalars(late.order_by(col(Part.shard_id), col(Part.epoch), col(Part.seq)))).all():
        lease = (row.shard_id, row.epoch)
        if lease not in seen:
            seen[lease] = await _taken(session, row)
        used = _sum(line for line in usage_of(row) if not ranges.intersects(seen[lease], ((line.idx, line.idx + 1),)))
        seen[lease] = ranges.union(seen[lease], row.lines)
        of = found.setdefault(row.placement_id, {})
        before = of.get(row.batch_id, Metered())
        of[row.batch_id] = msgspec.structs.replace(before, wasted=before.wasted + used)
    return found


async def _taken(session: AsyncSession, late: Part) -> Ranges:
    """Lines that other parts of the same lease hold."""
    query = select(col(Part.lines)).where(
        col(Part.shard_id) == late.shard_id, col(Part.epoch) == late.epoch, col(Part.outcome).not_in(PAID_FOR)
    )
    taken: Ranges = ()
    for lines in await session.scalars(query):
        taken = ranges.union(taken, lines)
    return taken


def _sum(lines: Iterable[LineUsage]) -> TokensUsed:
    total = TokensUsed()
    for line in lines:
        total += TokensUsed(
            prompt=line.prompt_tokens,
            cached=min(line.cached_tokens, line.prompt_tokens),
            completion=line.completion_tokens,
        )
    return total
