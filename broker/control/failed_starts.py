"""Offers that are held back for a while, because starting there failed."""

from __future__ import annotations

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from broker.tables import Worker
from markets.tables import RentalRow

SECOND_US = 1_000_000
# How long a failed start counts against its offer.
FAILED_MEMORY_US = 3600 * SECOND_US
# One that ran for longer before it failed is not looked for.
LONGEST_RUN_US = 7 * 86_400 * SECOND_US


async def held_back(session: AsyncSession, now_us: int) -> dict[str, str]:
    """Offers on which renting or starting failed a moment ago: 15 s after the first failure, doubling to 16 min.

    A capacity error is a market signal, not a reason to ask again at once. A token endpoint that was given up said nothing for
    minutes before: 5 min after the first time, doubling to 40, or batches would wait there for nothing until their deadline.
    """
    horizon = now_us - FAILED_MEMORY_US
    refused = (col(RentalRow.state) == "failed") & col(RentalRow.release_us).is_(None)
    # its machine ended by itself before there was a worker: it would do so again; one that we gave back would not
    ended_badly = col(RentalRow.end_reason).in_(("exited", "failed")) & col(RentalRow.release_us).is_(None)
    died_early = col(Worker.ready_us).is_(None) & ended_badly
    failed = (
        select(
            col(RentalRow.offer_key),
            func.count(),
            func.count(col(Worker.ready_us)).filter(col(RentalRow.pricing) == "token"),
            func.max(func.coalesce(col(Worker.gone_us), col(RentalRow.created_us))),
        )
        .join(Worker, col(Worker.rental) == col(RentalRow.id), isouter=True)
        .where(col(RentalRow.created_us) > now_us - LONGEST_RUN_US)
        .where((col(RentalRow.created_us) > horizon) | (col(Worker.gone_us) > horizon))
        .where(refused | (col(Worker.state) == "failed") | died_early)
        .group_by(col(RentalRow.offer_key))
    )
    reasons = {}
    for key, count, given_up, last_us in (await session.execute(failed)).all():
        wait_s = 300 * 2 ** min(given_up - 1, 3) if given_up else 15 * 2 ** min(count - 1, 6)
        until_us = last_us + wait_s * SECOND_US
        if now_us < until_us:
            reasons[key] = (
                f"offer {key}: failed {count} times in the last hour; held back for {(until_us - now_us) // SECOND_US} s more"
            )
    return reasons
