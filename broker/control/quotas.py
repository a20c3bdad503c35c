"""What the markets' quotas leave for a plan: what they said last, less what we took since. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from markets.instants import micros
from markets.offer import QuotaShare
from markets.offer_record import offer_from_record
from markets.price_book import Listed
from markets.tables import RentalRow
from solver.types import Quota


def quotas_left(listed: Sequence[Listed], open_rentals: Sequence[RentalRow]) -> tuple[Quota, ...]:
    """One for each group that an offer names, in its units and never below 0.

    What the newest answer said counts; of answers of one moment the least. A market counts what runs by itself, also what is
    not ours; only rentals that began after it counted are taken off here.
    """
    newest: dict[str, tuple[int, int]] = {}
    for each in listed:
        quota = each.offer.quota
        if quota is not None:
            said = (micros(each.offer.observed_at), -quota.left)
            newest[quota.group] = max(newest.get(quota.group, said), said)
    taken: dict[str, int] = {}
    for row in open_rentals:
        quota = _quota_of(row)
        if quota is not None and quota.group in newest:
            counted_us = newest[quota.group][0]
            if row.started_us is None or row.started_us > counted_us:
                taken[quota.group] = taken.get(quota.group, 0) + quota.units
    return tuple(
        Quota(market=group, remaining=max(0, -left - taken.get(group, 0)))
        for group, (_, left) in sorted(newest.items())
    )


def _quota_of(row: RentalRow) -> QuotaShare | None:
    return offer_from_record(row.facts).quota if row.facts.get("quota") else None
