"""Where the answers to a batch's lines lie, by its committed parts."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection
from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from jobs.answers import Known
from jobs.commits import usage_of
from jobs.final_plan import OWN_PLACEMENT
from jobs.tables import Part, Shard
from jobs.types import LineUsage

SHARDS_AT_ONCE = 50


@dataclass(frozen=True, slots=True)
class AnsweredLines:
    """A batch's shards by their first lines; answers are asked for by line."""

    firsts: tuple[int, ...]
    ids: tuple[str, ...]

    @classmethod
    async def of(cls, session: AsyncSession, batch_id: str) -> AnsweredLines:
        statement = select(col(Shard.first_idx), col(Shard.id)).where(col(Shard.batch_id) == batch_id)
        rows = (await session.execute(statement.order_by(col(Shard.first_idx)))).all()
        return cls(tuple(row[0] for row in rows), tuple(row[1] for row in rows))

    async def find(self, session: AsyncSession, lines: Collection[int], *, own: bool = True) -> dict[int, Known | None]:
        """Of these lines those that are answered: where the answer lies, or None where it is a failure.

        Without `own`, answers that the broker copied itself are left out: they say nothing of the tokens they took.
        """
        wanted = sorted({self.ids[bisect_right(self.firsts, line) - 1] for line in lines})
        found: dict[int, Known | None] = {}
        for start in range(0, len(wanted), SHARDS_AT_ONCE):
            statement = select(Part).where(
                col(Part.shard_id).in_(wanted[start : start + SHARDS_AT_ONCE]), col(Part.counted).is_(True)
            )
            rows = await session.stream_scalars(statement.execution_options(yield_per=20))
            async for part in rows:
                if own or part.placement_id != OWN_PLACEMENT:
                    found |= {each.idx: _known(part, each) for each in usage_of(part) if each.idx in lines}
        return found


def _known(part: Part, usage: LineUsage) -> Known | None:
    if usage.status == "failed":
        return None
    return Known(
        part_key=part.key,
        part_sha256=part.sha256,
        idx=usage.idx,
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
    )
