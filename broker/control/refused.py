"""What budgets refused to hold a moment ago, as a snapshot says it: while what limits leave has not grown."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy.ext.asyncio import AsyncSession

from broker.budgets import hours_left
from broker.refusals import Left
from broker.services import Services
from solver.types import Budget, Refusal, Work


async def refusals(
    session: AsyncSession, services: Services, works: Sequence[Work], budgets: Sequence[Budget], now_us: int
) -> tuple[Refusal, ...]:
    """Of the works that wait; `budgets` are what projects have left."""
    left_of = {each.project: each.remaining_nano for each in budgets}
    refused = services.refusals.hourly(now_us)
    hours = await hours_left(session, {work.id: work.project for work in works if work.id in refused})
    left = {
        work.id: Left(
            left_of.get(work.project),
            None if work.max_nano is None else work.max_nano - work.progress.spent_nano,
            hours.get(work.id),
        )
        for work in works
    }
    return tuple(
        Refusal(work_id=work, offer_key=offer, found=found.why, from_nano_hour=found.from_nano_hour)
        for (work, offer), found in services.refusals.in_force(left, now_us).items()
    )
