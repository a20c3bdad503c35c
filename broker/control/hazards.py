"""How often the machines of each spot pool were taken from us, for the next plan."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from markets.offer import OfferKey
from markets.tables import RentalRow
from solver.durations import UNKNOWN_SPOT_HAZARD
from solver.preemption import Seen, hazard

SECOND_US = 1_000_000
# Pools change: what is older says little. The newest so many rentals are read at most.
REMEMBERED_US = 7 * 86_400 * SECOND_US
READ_AT_MOST = 2_000
SPOT = ("spot", "bid")

Pool = tuple[str, str | None, str | None, str, int, str]


async def seen_pools(session: AsyncSession, now_us: int) -> dict[Pool, Seen]:
    """By pool: machine-hours and losses of spot rentals in the last seven days."""
    columns = (RentalRow.offer_key, RentalRow.started_us, RentalRow.ended_us, RentalRow.end_reason)
    found = await session.execute(
        select(*(col(each) for each in columns))
        .where(col(RentalRow.pricing).in_(SPOT), col(RentalRow.started_us) > now_us - REMEMBERED_US)
        .order_by(col(RentalRow.started_us).desc())
        .limit(READ_AT_MOST)
    )
    return gather(found.all(), now_us)


def gather(rows: Iterable[Sequence[object]], now_us: int) -> dict[Pool, Seen]:
    """Rows of (offer key, started, ended or None, end reason) by pool. Pure."""
    hours: dict[Pool, float] = {}
    lost: dict[Pool, list[float]] = {}
    for key, started_us, ended_us, reason in rows:
        if not isinstance(started_us, int):
            continue
        pool = pool_of(str(key))
        end_us = ended_us if isinstance(ended_us, int) else now_us
        hours[pool] = hours.get(pool, 0.0) + max(0, end_us - started_us) / (3600 * SECOND_US)
        if reason == "preempted":
            lost.setdefault(pool, []).append(end_us / SECOND_US)
    return {pool: Seen(ran, tuple(lost.get(pool, ()))) for pool, ran in hours.items()}


def pool_of(offer_key: str) -> Pool:
    """Which machines are taken for the same cause: one market's, in one place, of one kind. A marketplace's ask is no pool."""
    key = OfferKey.parse(offer_key)
    return key.provider, key.region, key.zone, key.accelerator, key.count, key.pricing


def learned_hazard(pools: dict[Pool, Seen], offer_key: str, pricing: str, said: float | None) -> float | None:
    """Losses an hour as the plan shall count with: what was said, or the usual, corrected by what was seen; None as before for
    what is no spot or was never rented."""
    seen = pools.get(pool_of(offer_key)) if pools and pricing in SPOT else None
    if seen is None:
        return said
    # in thousandths: a plan must not change with every minute that a machine goes on
    return round(hazard(UNKNOWN_SPOT_HAZARD if said is None else said, seen).mean, 3)
