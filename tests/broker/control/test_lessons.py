"""What our own rentals taught of an offer changes the next plan, not only the score that people see."""

from __future__ import annotations

from dataclasses import dataclass, replace
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import select

from broker.control.lessons import Lesson, Outcome, lesson, outcome, taught
from broker.control.place import Placer
from broker.control.plan import Planner
from broker.control.snapshot import freeze
from broker.tables import Worker
from jobs.clock import db_now
from markets.errors import MarketsError, NoCapacity, NotAuthorized, PriceMoved, QuotaExceeded
from markets.learned import learned
from markets.market import Intent, Rental
from markets.offer import Offer
from markets.tables import RentalRow
from solver.types import OfferView, Timings

HOUR_US = 3_600_000_000
VIEW = OfferView(
    key="a/-/-/one/cpu/0/on_demand", market="a", accelerator="cpu/process", pricing="on_demand",
    price_nano_hour=1_000, capacity=1, facts_hash="f", timings=Timings(boot_s=100, load_s=10),
)  # fmt: skip


async def view(town: Any, of: Offer) -> OfferView:
    async with town.database.transaction() as session:
        frozen = await freeze(session, town.services, now_us=await db_now(session))
    return next(each for each in frozen.snapshot.offers if each.key == str(of.key))


async def rentals(town: Any, of: Offer, count: int, **fields: Any) -> None:
    """Ended rentals of an offer, two hours ago, so that no pause holds it back any more."""
    for _ in range(count):
        rental = await town.rental(of, purpose=(await town.batch(),))
        async with town.database.transaction() as session:
            row = await session.get_one(RentalRow, rental)
            row.created_us -= 2 * HOUR_US
            row.settled = True
            for name, value in fields.items():
                setattr(row, name, value)
            row.started_us = None if row.state == "failed" else row.started_us
        if fields["state"] == "failed":
            async with town.database.transaction() as session:
                worker = await session.get_one(Worker, rental)
                worker.ready_us, worker.state = None, "gone"


async def test_an_offer_on_which_starts_fail_is_asked_after_one_that_never_failed(town: Any) -> None:
    """Of two at one price the first by name was asked again and again, once its pause was over."""
    first, second = replace(town.offer("a"), boot_s=60), replace(town.offer("b"), boot_s=60)
    await town.list_offers(first, second)
    await rentals(town, first, 3, state="failed", error="no_capacity: sold out")
    assert (await view(town, first)).excluded is None
    assert (await view(town, first)).timings.boot_s > (await view(town, second)).timings.boot_s == 60
    await Planner(town.services).step()
    assert {row.offer_key for row in await town.intents()} == {str(second.key)}


async def test_an_offer_that_bills_more_than_it_quotes_is_planned_with_as_it_bills(town: Any) -> None:
    one = town.offer("a")
    await town.list_offers(one)
    await rentals(town, one, 3, state="ended", end_reason="released", price_nano_hour=4_500_000_000)
    assert (await view(town, one)).price_nano_hour == 4_500_000_000, "quoted at 3.60"


async def test_a_machine_that_is_no_spot_and_was_lost_is_planned_with_as_one_that_may_be_lost(town: Any) -> None:
    one = town.offer("a")
    await town.list_offers(one)
    assert not (await view(town, one)).hazard
    await rentals(town, one, 2, state="lost", end_reason="lost")
    assert ((await view(town, one)).hazard or 0) > 0


@dataclass
class Refusing:
    """A market that creates nothing."""

    error: MarketsError

    async def rent(self, offer: Offer, intent: Intent) -> Rental:
        raise self.error


@pytest.mark.parametrize(
    ("error", "is_blamed"),
    [
        (NoCapacity("none left"), True),
        (QuotaExceeded("0 vCPU are granted"), False),
        (NotAuthorized("the key was revoked"), False),
        (PriceMoved("3.70 is asked"), False),
        (None, False),  # the model is not configured any more
    ],
)
async def test_a_key_that_was_refused_for_an_hour_did_not_make_every_offer_slow_for_a_week(
    town: Any, error: MarketsError | None, is_blamed: bool
) -> None:
    one = replace(town.offer("a"), boot_s=60)
    await town.list_offers(one)
    await town.batch()
    await Planner(town.services).step()
    here = {"markets": {"town": Refusing(error)}} if error else {"models": {}}
    await Placer(replace(town.services, **here), None).step()
    async with town.database.transaction() as session:
        [row] = await session.scalars(select(RentalRow))
        assert (row.state, row.release_us) == ("failed", None)
        row.created_us -= 2 * HOUR_US  # the pause is over
    assert (await view(town, one)).timings.boot_s == (75 if is_blamed else 60)
    async with town.database.transaction() as session:
        assert (await learned(session, since_us=0))[str(one.key)].failed == is_blamed


def test_what_was_never_rented_is_planned_with_as_before() -> None:
    assert taught(VIEW, None) == VIEW == taught(VIEW, Lesson())


def test_a_start_that_we_took_back_ourselves_is_no_failure() -> None:
    error = "no_capacity: sold out"
    ours = outcome("failed", 5, None, None, "failed", error, 10, None, "gone", "1e-8", now_us=9)
    theirs = outcome("failed", None, None, None, "failed", error, 10, None, "gone", "1e-8", now_us=9)
    mute = outcome("ended", None, 1, 2, "exited", None, 10, None, "gone", None, now_us=9)
    assert [each.is_good for each in (ours, theirs, mute)] == [None, False, False]


@given(st.lists(st.sampled_from([True, False, None]), max_size=60))
def test_failures_make_an_offer_dearer_never_cheaper_and_never_impossible(starts: list[bool | None]) -> None:
    known = lesson([Outcome(is_good, 10, 10 if is_good else 0) for is_good in starts])
    assert Fraction(1) <= known.tries <= 6
    assert known.billed == 1
    worse = lesson([Outcome(False, 10, 0), *(Outcome(is_good, 10, 0) for is_good in starts)])
    assert len(starts) >= 20 or worse.tries >= known.tries
    changed = taught(VIEW, known)
    assert 100 <= changed.timings.boot_s <= 600 and changed.price_nano_hour == VIEW.price_nano_hour


@given(st.decimals("0.5", "2", places=3))
def test_a_lower_bill_is_believed_when_it_comes(ratio: Decimal) -> None:
    """What is planned with is never less than what is quoted: a credit may end."""
    known = lesson([Outcome(True, 1_000_000, int(ratio * 1_000_000))] * 5)
    assert known.billed == max(Fraction(1), Fraction(int(ratio * 1_000_000), 1_000_000))
