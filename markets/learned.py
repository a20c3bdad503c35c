"""What our own rentals taught us of an offer, and how far it is to be trusted for it.

Counted out of the rentals themselves, so that nothing is kept twice: how many starts were asked for and became machines, how
long that took, how often they were taken away per hour that they ran, and whether what was billed is what was quoted.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from statistics import median

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from ledger.money import to_nano
from markets.errors import NoCapacity
from markets.instants import micros
from markets.offer import LocationTier, Offer
from markets.tables import RentalRow

PPM = 1_000_000
# What is believed of an offer that nobody has rented: nine of ten starts succeed, as sure as after four of them.
PRIOR_STARTS, PRIOR_GOOD = 4, Decimal("3.6")
# Salad's published test: 182 reallocations in 168 h on 100 nodes.
PRIOR_HOURS, PRIOR_LOSS_PER_HOUR = 10, Decimal("0.011")
TIERS: Mapping[LocationTier, int] = {
    "hyperscaler_region": 30, "named_datacenter": 25, "verified_host": 15, "claimed": 5, "anonymous": 0,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Learned:
    """Of one offer. `boot_s` is the median from asking to running. `quoted_nano` and `billed_nano` are sums of hourly prices over
    the rentals that started: what was planned with, and what the market says it charges."""

    asked: int = 0
    started: int = 0
    failed: int = 0
    interrupted: int = 0
    ran_s: int = 0
    boot_s: int | None = None
    quoted_nano: int = 0
    billed_nano: int = 0

    @property
    def failed_share(self) -> Decimal | None:
        """Of the starts that were asked for; None until one was."""
        return round(Decimal(self.failed) / self.asked, 3) if self.asked else None

    @property
    def interruptions_per_hour(self) -> Decimal | None:
        """None until it has run at all."""
        return round(Decimal(self.interrupted * 3600) / self.ran_s, 6) if self.ran_s else None


@dataclass(frozen=True, slots=True)
class Point:
    """One part of a trust score: `points` of `most`, and why."""

    name: str
    points: int
    most: int
    why: str


@dataclass(frozen=True, slots=True)
class Trust:
    """0 to 100: the sum of its points."""

    score: int
    points: tuple[Point, ...]


async def learned(session: AsyncSession, *, since_us: int, keys: Sequence[str] = ()) -> Mapping[str, Learned]:
    """Of the offers that were rented since then; of `keys` only, if there are any."""
    query = select(RentalRow).where(col(RentalRow.created_us) >= since_us, col(RentalRow.state) != "intended")
    if keys:
        query = query.where(col(RentalRow.offer_key).in_(keys))
    by_key: dict[str, list[RentalRow]] = {}
    for row in await session.scalars(query):
        by_key.setdefault(row.offer_key, []).append(row)
    return {key: of_rentals(rows) for key, rows in by_key.items()}


def is_offers_own(error: str | None) -> bool:
    """Whether a start that failed with this error (`code: words`, as it is recorded) failed for want of the machine. Pure.

    A refused key, a quota, a price that moved, missing weights or a market that is not configured any more would have failed
    on any other offer, too, and one day of them must not be held against the offers for a week.

    >>> [is_offers_own(each) for each in ("no_capacity: sold out", "quota_exceeded: 0 vCPU", None)]
    [True, False, False]
    """
    return (error or "").partition(":")[0] == NoCapacity.code


def of_rentals(rows: Iterable[RentalRow]) -> Learned:
    """Pure. A rental that we took back ourselves before it was there is no failure of the offer (nor see `is_offers_own`)."""
    rows = list(rows)
    started = [row for row in rows if row.started_us is not None]
    boots = [max(0, (row.started_us or 0) - row.created_us) // 1_000_000 for row in started]
    return Learned(
        asked=len(rows),
        started=len(started),
        failed=sum(row.state == "failed" and row.release_us is None and is_offers_own(row.error) for row in rows),
        interrupted=sum(row.end_reason == "preempted" or row.state == "lost" for row in started),
        ran_s=sum(_ran_us(row) for row in started) // 1_000_000,
        boot_s=round(median(boots)) if boots else None,
        quoted_nano=sum(_quoted(row) for row in started),
        billed_nano=sum(row.price_nano_hour for row in started),
    )


def trust(offer: Offer, known: Learned, *, now_us: int, in_counts: bool = True) -> Trust:
    """How far `offer` is to be trusted now, given what is known of it. Pure; unknown counts as the prior says, never as good.
    `in_counts`: the reasons may say how much was rented, which is of all projects.

    Location up to 30 (evidence of the tier), starts up to 30, staying up to 20, and up to 20 for billing what was quoted.
    """
    current = [each for each in offer.evidence if micros(each.observed_at + each.ttl) > now_us]
    tier = TIERS[offer.location_tier] if current else 0
    good = (PRIOR_GOOD + known.started) / (PRIOR_STARTS + known.started + known.failed)
    hours = Decimal(known.ran_s) / 3600
    prior = PRIOR_LOSS_PER_HOUR if offer.interruption_per_hour is None else offer.interruption_per_hour
    loss = (prior * PRIOR_HOURS + known.interrupted) / (PRIOR_HOURS + hours)
    excess = (
        Decimal(max(0, known.billed_nano - known.quoted_nano)) / known.quoted_nano if known.quoted_nano else Decimal(0)
    )
    starts, stays = (
        f"{known.started} of {known.asked} starts became machines",
        f"{known.interrupted} interruptions in {hours:.1f} h",
    )
    if not in_counts:
        failed, rate = known.failed_share, known.interruptions_per_hour
        starts = "no start is known of" if failed is None else f"{failed:.1%} of the starts failed"
        stays = "nothing ran that is known of" if rate is None else f"{rate:.3f} interruptions an hour"
    points = (
        Point("location", tier, 30, f"{offer.location_tier}, pieces of current evidence: {len(current)}"),
        Point("starts", int(30 * good), 30, starts),
        Point("stays", int(20 / (1 + 20 * loss)), 20, stays),
        Point("billing", int(20 * max(Decimal(0), 1 - 10 * excess)), 20, f"billed {excess:.1%} above what was quoted"),
    )
    return Trust(sum(each.points for each in points), points)


def _ran_us(row: RentalRow) -> int:
    until = row.ended_us if row.ended_us is not None else row.last_seen_us
    return max(0, (until or 0) - (row.started_us or 0))


def _quoted(row: RentalRow) -> int:
    price = row.facts.get("price")
    return row.price_nano_hour if price is None else to_nano(Decimal(price))
