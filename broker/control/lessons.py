"""What our own rentals taught of each offer, as the plan counts with it: starts that fail, bills above the quote, machines lost.

A fact that only the trust score knew changed nothing: an offer on which every start failed was asked again as soon as its pause
was over, though another at the same price had never failed. How long starts take is `broker.start_up`'s, how often spot
is taken from us `hazards`'.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Any

import msgspec
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from broker.control.hazards import SPOT
from broker.tables import Worker
from ledger.money import to_nano
from markets.learned import PRIOR_GOOD, PRIOR_STARTS, is_offers_own
from markets.tables import RentalRow
from solver.preemption import Seen, hazard
from solver.types import OfferView, Timings

SECOND_US = 1_000_000
HOUR_US = 3600 * SECOND_US
# As for start-up times: what is older is forgotten, so that an offer gets another chance.
REMEMBERED_US = 7 * 24 * HOUR_US
READ_AT_MOST = 2_000
# The newest so many starts of an offer count: one bad night must not price it out for a week.
WINDOW = 20
# Rentals of an offer from which on its bills are believed rather than its quotes.
ENOUGH_BILLED = 3


@dataclass(frozen=True, slots=True)
class Outcome:
    """One rental: whether its start succeeded (None: not known, or ended by us), and what it cost an hour, quoted and billed.

    `lost_at_s`: when it was taken from us, if it was."""

    is_good: bool | None
    quoted_nano: int
    billed_nano: int
    ran_s: int = 0
    lost_at_s: float | None = None


@dataclass(frozen=True, slots=True)
class Lesson:
    """`tries`: how many starts are expected to be needed, against an offer that nobody knows; 1 at least. `billed`: what is
    billed against what was quoted; 1 at least. `seen`: hours and losses, None without a loss."""

    tries: Fraction = Fraction(1)
    billed: Fraction = Fraction(1)
    seen: Seen | None = None


async def lessons(session: AsyncSession, now_us: int) -> Mapping[str, Lesson]:
    """By key, of the offers that were rented in the last seven days."""
    columns = (
        RentalRow.offer_key, RentalRow.state, RentalRow.release_us, RentalRow.started_us, RentalRow.ended_us,
        RentalRow.end_reason, RentalRow.error, RentalRow.price_nano_hour, Worker.ready_us, Worker.state,
    )  # fmt: skip
    found = await session.execute(
        select(*(col(each) for each in columns), col(RentalRow.facts)["price"].as_string())
        .join(Worker, col(Worker.rental) == col(RentalRow.id), isouter=True)
        .where(col(RentalRow.created_us) > now_us - REMEMBERED_US, col(RentalRow.state) != "intended")
        .order_by(col(RentalRow.created_us).desc())
        .limit(READ_AT_MOST)
    )
    by_key: dict[str, list[Outcome]] = {}
    for row in found.all():
        columns_of: tuple[Any, ...] = tuple(row)
        by_key.setdefault(str(columns_of[0]), []).append(outcome(*columns_of[1:], now_us=now_us))
    return {key: lesson(outcomes) for key, outcomes in by_key.items()}


def outcome(
    state: str,
    release_us: int | None,
    started_us: int | None,
    ended_us: int | None,
    end_reason: str | None,
    error: str | None,
    price_nano: int,
    ready_us: int | None,
    worker: str | None,
    quoted: Any,
    *,
    now_us: int,
) -> Outcome:
    """What one rental says. Pure. A start that we took back ourselves says nothing, nor one that failed for what is ours (a
    refused key, a quota, …); a machine without a worker that ended by itself was a failed start, whatever the market calls it."""
    is_mute = ready_us is None and end_reason in ("exited", "failed")
    is_bad = release_us is None and (is_offers_own(error) if state == "failed" else is_mute)
    is_good = True if ready_us is not None else False if is_bad or worker == "failed" else None
    until_us = now_us if ended_us is None else ended_us
    is_lost = started_us is not None and (end_reason == "preempted" or state == "lost")
    return Outcome(
        is_good=is_good,
        quoted_nano=price_nano if quoted is None else to_nano(Decimal(str(quoted))),
        billed_nano=price_nano if started_us is not None else 0,
        ran_s=max(0, until_us - started_us) // SECOND_US if started_us is not None else 0,
        lost_at_s=until_us / SECOND_US if is_lost else None,
    )


def lesson(newest_first: Iterable[Outcome]) -> Lesson:
    """Pure. Nine of ten starts are believed to succeed before any was seen, as sure as after four of them.

    >>> failed = Outcome(False, 10, 0)
    >>> lesson([]).tries, lesson([failed]).tries, lesson([failed] * 4).tries
    (Fraction(1, 1), Fraction(5, 4), Fraction(2, 1))
    >>> lesson([Outcome(True, 10, 11)] * 3).billed
    Fraction(11, 10)
    """
    outcomes = list(newest_first)
    tried = [each.is_good for each in outcomes if each.is_good is not None][:WINDOW]
    prior = Fraction(PRIOR_GOOD) / PRIOR_STARTS
    success = (Fraction(PRIOR_GOOD) + sum(tried)) / (PRIOR_STARTS + len(tried))
    paid = [each for each in outcomes if each.billed_nano > 0 and each.quoted_nano > 0][:WINDOW]
    billed = Fraction(1)
    if len(paid) >= ENOUGH_BILLED:
        billed = Fraction(sum(each.billed_nano for each in paid), sum(each.quoted_nano for each in paid))
    lost = tuple(each.lost_at_s for each in outcomes if each.lost_at_s is not None)
    hours = sum(each.ran_s for each in outcomes) / 3600
    return Lesson(max(Fraction(1), prior / success), max(Fraction(1), billed), Seen(hours, lost) if lost else None)


def taught(view: OfferView, known: Lesson | None) -> OfferView:
    """The view with what its rentals taught. Pure.

    Each try takes the time of a boot, and a machine that is found late is paid for while it does nothing: the expected boot is
    the usual one times the expected tries. A price that is billed higher than quoted is planned with as billed. Machines
    that are no spot are not expected to be lost until one was.
    """
    if known is None:
        return view
    price = view.price_nano_hour
    loses = known.seen is not None and view.pricing not in SPOT
    return msgspec.structs.replace(
        view,
        timings=_tried(view.timings, known.tries),
        start_up={model: _tried(each, known.tries) for model, each in view.start_up.items()},
        price_nano_hour=None if price is None else math.ceil(price * known.billed),
        hazard=round(hazard(view.hazard or 0.0, known.seen).mean, 3) if loses and known.seen else view.hazard,
    )


def _tried(timings: Timings, tries: Fraction) -> Timings:
    return Timings(boot_s=math.ceil(timings.boot_s * tries), load_s=timings.load_s)
