"""A rental's states: from the intent to the confirmed end, and never back."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.database import Database
from markets import rentals
from markets.errors import IllegalTransition, RentalUnknown
from markets.market import Rental
from markets.offer import Accelerator, Offer, OfferKey
from markets.offer_record import offer_from_record
from markets.rentals import OVER, TRANSITIONS, Event, State, next_state
from markets.tables import RentalRow

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)
NOON_US = 1_795_348_800_000_000
KEY = OfferKey("sandbox", "eu-de", None, "cpu-2", "cpu", 0, "spot")
OFFER = Offer(
    key=KEY,
    launch="process",
    accelerator=Accelerator(),
    currency="USD",
    price=Decimal("0.12"),
    observed_at=NOON,
    source="test",
    raw_sha256="00",
    country="DE",
    granularity_s=60,
    minimum_s=60,
)
SEEN = Rental(
    tag="rental_1",
    offer_key=KEY,
    state="running",
    price=Decimal("0.12"),
    currency="USD",
    started_at=NOON,
    ended_at=None,
    seen_at=NOON + timedelta(seconds=30),
)
OVER_NOW = replace(SEEN, state="ended", ended_at=NOON + timedelta(seconds=90), end_reason="preempted", exit_status=-9)


async def intend(book: Database, rental_id: str = "rental_1") -> None:
    async with book.transaction() as session:
        await rentals.record_intent(
            session,
            rental_id=rental_id,
            offer=OFFER,
            project="project_1",
            model="m",
            precision="auto",
            purpose={"batch": "batch_1"},
            now_us=NOON_US,
        )


async def state(book: Database, rental_id: str = "rental_1") -> RentalRow:
    async with book.transaction() as session:
        return await rentals.get(session, rental_id)


async def test_an_intent_freezes_the_facts_of_its_offer(book: Database) -> None:
    await intend(book)
    row = await state(book)
    assert (row.state, row.price_nano_hour, row.granularity_s) == ("intended", 120_000_000, 60)
    assert offer_from_record(row.facts) == OFFER


async def test_a_rental_lives_from_intent_to_confirmed_end(book: Database) -> None:
    await intend(book)
    async with book.transaction() as session:
        await rentals.mark_creating(session, "rental_1", now_us=NOON_US)
        await rentals.confirm(session, SEEN, now_us=NOON_US)
        await rentals.request_release(session, "rental_1", reason="batch is done", now_us=NOON_US)
        assert [row.id for row in await rentals.open_rentals(session, "sandbox")] == ["rental_1"]
        await rentals.observe(session, OVER_NOW, now_us=NOON_US)
    row = await state(book)
    assert (row.state, row.end_reason, row.exit_status) == ("ended", "preempted", -9)
    assert row.ended_us is not None and row.started_us is not None
    assert row.ended_us - row.started_us == 90_000_000
    async with book.transaction() as session:
        assert not await rentals.open_rentals(session)
        assert [each.id for each in await rentals.unsettled(session)] == ["rental_1"]
        await rentals.settle(session, "rental_1")
        assert not await rentals.unsettled(session)


async def test_instance_leaked_between_create_and_record_is_adopted_from_its_intent(book: Database) -> None:
    await intend(book)
    async with book.transaction() as session:
        row = await rentals.observe(session, SEEN, now_us=NOON_US)
    assert row.state == "running"


async def test_a_released_intent_is_never_created(book: Database) -> None:
    await intend(book)
    async with book.transaction() as session:
        await rentals.request_release(session, "rental_1", reason="cancelled", now_us=NOON_US)
        with pytest.raises(IllegalTransition, match="releasing cannot create"):
            await rentals.mark_creating(session, "rental_1", now_us=NOON_US)


async def test_a_machine_that_turns_up_after_we_gave_up_is_released_not_used(book: Database) -> None:
    await intend(book)
    async with book.transaction() as session:
        await rentals.failed(session, "rental_1", error="timed out", now_us=NOON_US)
        await rentals.settle(session, "rental_1")
        row = await rentals.confirm(session, SEEN, now_us=NOON_US)
        assert (row.state, row.settled) == ("releasing", False)
        assert row.release_reason == "it turned up after it was failed"


async def test_a_confirmed_rental_cannot_fail_only_be_lost_where_it_was_last_seen(book: Database) -> None:
    await intend(book)
    async with book.transaction() as session:
        await rentals.confirm(session, SEEN, now_us=NOON_US)
        with pytest.raises(IllegalTransition):
            await rentals.failed(session, "rental_1", error="?", now_us=NOON_US)
        row = await rentals.lost(session, "rental_1", error="the market knows no such tag", now_us=NOON_US)
    assert (row.state, row.ended_us) == ("lost", row.last_seen_us)


async def test_the_first_confirmed_end_stays(book: Database) -> None:
    await intend(book)
    later = replace(OVER_NOW, ended_at=NOON + timedelta(hours=1), end_reason="exited", exit_status=0)
    async with book.transaction() as session:
        await rentals.ended(session, OVER_NOW, now_us=NOON_US)
        first = (await rentals.ended(session, later, now_us=NOON_US)).ended_us
        await rentals.confirm(session, SEEN, now_us=NOON_US)
    row = await state(book)
    assert (row.state, row.ended_us, row.exit_status) == ("ended", first, -9)
    assert first == NOON_US + 90_000_000


async def test_a_sight_never_goes_back_in_time(book: Database) -> None:
    await intend(book)
    async with book.transaction() as session:
        await rentals.confirm(session, SEEN, now_us=NOON_US)
        await rentals.confirm(session, replace(SEEN, seen_at=NOON), now_us=NOON_US)
    assert (await state(book)).last_seen_us == NOON_US + 30_000_000


async def test_an_offer_without_a_usd_price_is_never_intended(book: Database) -> None:
    async with book.transaction() as session:
        for wrong in (replace(OFFER, price=None), replace(OFFER, currency="EUR")):
            with pytest.raises(ValueError, match="USD price"):
                await rentals.record_intent(
                    session, rental_id="r", offer=wrong, project="p", model="m", precision="auto", purpose={}, now_us=0
                )


async def test_what_the_database_does_not_know_is_said_so(book: Database) -> None:
    async with book.transaction() as session:
        with pytest.raises(RentalUnknown, match="rental_none"):
            await rentals.get(session, "rental_none")


EVENTS: tuple[Event, ...] = ("create", "confirm", "release", "end", "fail", "lose")


@given(st.lists(st.sampled_from(EVENTS), max_size=30))
def test_whatever_happens_an_end_is_final_and_nothing_comes_back_to_work(events: list[Event]) -> None:
    """Invariants: `ended` is absorbing; from lost and failed nothing leads back to running."""
    at: State = "intended"
    was_over = False
    for event in events:
        try:
            after = next_state(at, event)
        except IllegalTransition:
            continue
        assert not (at == "ended" and after != "ended")
        assert not (was_over and after in ("intended", "creating", "running"))
        was_over = was_over or after in OVER
        at = after


def test_every_open_state_can_be_released_and_can_end() -> None:
    for at in rentals.OPEN:
        assert TRANSITIONS[at, "release"] == "releasing"
        assert TRANSITIONS[at, "end"] == "ended"


async def test_an_ended_rental_stays_ended_for_who_read_it_before_and_locks_it_now(book: Database) -> None:
    """PostgreSQL waits for the lock and reads the row anew, but the session kept what it had read before: `releasing` was
    written over an end that was confirmed meanwhile. SQLite has one writer, so there the end comes first."""
    await intend(book)
    async with book.transaction() as session:
        await rentals.confirm(session, SEEN, now_us=NOON_US)
    if book.engine.dialect.name != "postgresql":
        async with book.transaction() as session:
            await rentals.ended(session, OVER_NOW, now_us=NOON_US)
    async with book.transaction() as session:
        read = await session.get(RentalRow, "rental_1")  # a session forgets what nobody holds
        if book.engine.dialect.name == "postgresql":
            async with book.transaction() as other:
                await rentals.ended(other, OVER_NOW, now_us=NOON_US)
        row = await rentals.request_release(session, "rental_1", reason="late", now_us=NOON_US)
        assert row is read
        assert (row.state, row.release_us) == ("ended", None)
