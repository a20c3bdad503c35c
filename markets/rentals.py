"""Rentals in the database: from the intent, written before the market hears of it, to the confirmed end.

Which state may follow which is one pure table. The functions below take a session, never begin or commit, and make no
network call. Each change of state is logged once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import structlog
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from ledger.money import to_nano
from markets.errors import IllegalTransition, RentalUnknown
from markets.instants import maybe_micros, micros
from markets.market import EndReason, Rental
from markets.offer import Accelerator, Offer
from markets.offer_record import record_from_offer
from markets.tables import RentalRow

State = Literal["intended", "creating", "running", "releasing", "ended", "lost", "failed"]
Event = Literal["create", "confirm", "release", "end", "fail", "lose"]

OPEN: tuple[State, ...] = ("intended", "creating", "running", "releasing")
OVER: tuple[State, ...] = ("ended", "lost", "failed")

TRANSITIONS: Mapping[tuple[State, Event], State] = {
    ("intended", "create"): "creating",
    ("creating", "create"): "creating",  # a retry under the same tag
    ("intended", "confirm"): "running",  # found by tag after a crash between create and record
    ("creating", "confirm"): "running",
    ("running", "confirm"): "running",
    ("releasing", "confirm"): "releasing",
    ("ended", "confirm"): "ended",  # old news: the market's word on the end is final
    ("lost", "confirm"): "releasing",  # its work has moved on; it must not go on costing money
    ("failed", "confirm"): "releasing",  # created after all, long after we gave up
    ("intended", "release"): "releasing",
    ("creating", "release"): "releasing",
    ("running", "release"): "releasing",
    ("releasing", "release"): "releasing",
    ("ended", "release"): "ended",
    ("lost", "release"): "lost",
    ("failed", "release"): "failed",
    **{(state, "end"): "ended" for state in (*OPEN, *OVER)},
    ("intended", "fail"): "failed",
    ("creating", "fail"): "failed",
    ("releasing", "fail"): "failed",  # only when it never started, see `failed`
    ("failed", "fail"): "failed",
    ("running", "lose"): "lost",
    ("releasing", "lose"): "lost",
    ("lost", "lose"): "lost",
    ("ended", "lose"): "ended",
}

# The error of an intent whose machine no list had: it may turn up all the same, see `doubtful`.
NEVER_HAD = "the market never had it"

_log = structlog.get_logger("markets.rentals")


def next_state(state: State, event: Event) -> State:
    """Where `event` leads from `state`. Raises IllegalTransition when the table has no such step."""
    try:
        return TRANSITIONS[state, event]
    except KeyError:
        possible = ", ".join(sorted(known for at, known in TRANSITIONS if at == state))
        raise IllegalTransition(f"a rental that is {state} cannot {event}; possible: {possible}") from None


async def record_intent(
    session: AsyncSession,
    *,
    rental_id: str,
    offer: Offer,
    project: str,
    model: str,
    precision: str,
    purpose: Mapping[str, Any],
    now_us: int,
) -> RentalRow:
    """Write down what is about to be rented; `rental_id` becomes the tag. Raises ValueError without a USD price."""
    if offer.price is None or offer.currency != "USD":
        raise ValueError(
            f"offer {offer.key}: price {offer.price} {offer.currency} cannot be rented; a USD price is needed"
        )
    row = RentalRow(
        id=rental_id,
        market=offer.market,
        offer_key=str(offer.key),
        project=project,
        model=model,
        precision=precision,
        state="intended",
        price_nano_hour=to_nano(offer.price),
        pricing=offer.pricing,
        granularity_s=offer.granularity_s,
        minimum_s=offer.minimum_s,
        facts=record_from_offer(offer),
        purpose=dict(purpose),
        market_facts={},
        created_us=now_us,
    )
    session.add(row)
    await session.flush()
    _log.info("rental.intended", rental=rental_id, offer=row.offer_key, project=project, model=model)
    return row


async def record_leaked(
    session: AsyncSession, rental: Rental, offer: Offer | None, *, project: str, now_us: int
) -> RentalRow:
    """A machine with our mark that we knew nothing of, and whose end the market has confirmed: what it cost is owed.

    `offer` is what the price book has under its key; without it, whole seconds are counted. Raises ValueError when the
    rental has not ended, or has no start or no USD price.
    """
    if rental.ended_at is None or rental.started_at is None or rental.currency != "USD":
        raise ValueError(
            f"rental {rental.tag} is {rental.state} at {rental.price} {rental.currency}; it cannot be booked"
        )
    offer = offer or Offer(
        key=rental.offer_key,
        launch="vm",
        accelerator=Accelerator(name=rental.offer_key.accelerator, count=rental.offer_key.count),
        currency=rental.currency,
        price=rental.price,
        observed_at=rental.seen_at,
        source="the market's list of rentals",
        raw_sha256="",
    )
    row = RentalRow(
        id=rental.tag,
        market=rental.offer_key.market,
        offer_key=str(rental.offer_key),
        project=project,
        model="unknown",
        precision="auto",
        state="ended",
        price_nano_hour=to_nano(rental.price),
        pricing=rental.offer_key.pricing,
        granularity_s=offer.granularity_s,
        minimum_s=offer.minimum_s,
        facts=record_from_offer(offer),
        purpose={"leaked": True},
        market_facts={},
        created_us=micros(rental.started_at),
        release_us=now_us,
        release_reason="it was leaked: our mark, and no record of it",
        ended_us=micros(rental.ended_at),
        end_reason=rental.end_reason,
    )
    _take(row, rental)
    session.add(row)
    await session.flush()
    _log.warning("rental.leaked", rental=rental.tag, offer=row.offer_key, project=project, **rental.facts)
    return row


async def get(session: AsyncSession, rental_id: str) -> RentalRow:
    """The rental. Raises RentalUnknown."""
    return await _locked(session, rental_id)


async def open_rentals(session: AsyncSession, market: str | None = None) -> Sequence[RentalRow]:
    """Rentals that are not known to be over, oldest first, of one market or of all."""
    query = (
        select(RentalRow).where(col(RentalRow.state).in_(OPEN)).order_by(col(RentalRow.created_us), col(RentalRow.id))
    )
    if market is not None:
        query = query.where(col(RentalRow.market) == market)
    return (await session.scalars(query)).all()


async def doubtful(session: AsyncSession, market: str, *, since_us: int) -> int:
    """How many intents since then were given up because the market did not list their machines: a create whose answer was
    lost may have made one that shows up late."""
    given_up = (col(RentalRow.state) == "failed") & (col(RentalRow.error) == NEVER_HAD)
    since = col(RentalRow.created_us) >= since_us
    counted = select(func.count()).where(col(RentalRow.market) == market, given_up, since)
    return (await session.execute(counted)).scalar_one()


async def known_rentals(session: AsyncSession, market: str, tags: Sequence[str]) -> Sequence[RentalRow]:
    """What the sweep compares a market's list with: its open rentals and, whatever their state, those in `tags`."""
    wanted = col(RentalRow.state).in_(OPEN) | col(RentalRow.id).in_(tags)
    return (await session.scalars(select(RentalRow).where(col(RentalRow.market) == market, wanted))).all()


async def unsettled(session: AsyncSession) -> Sequence[RentalRow]:
    """Rentals that are over and whose final meter (and hold) has not been booked yet."""
    query = select(RentalRow).where(col(RentalRow.state).in_(OVER), col(RentalRow.settled).is_(False))
    return (await session.scalars(query.order_by(col(RentalRow.created_us)))).all()


async def settle(session: AsyncSession, rental_id: str) -> RentalRow:
    """The broker has booked all that there is to book. Raises IllegalTransition while the rental is not over."""
    row = await _locked(session, rental_id)
    if row.state not in OVER:
        raise IllegalTransition(f"rental {rental_id} is {row.state}; it is settled only after its end is confirmed")
    row.settled = True
    return row


async def mark_creating(session: AsyncSession, rental_id: str, *, now_us: int) -> RentalRow:
    """The market is about to be asked. IllegalTransition means: do not ask (it was released or failed meanwhile)."""
    row = await _locked(session, rental_id)
    _step(row, "create", now_us)
    row.attempts += 1
    return row


async def observe(session: AsyncSession, rental: Rental, *, now_us: int) -> RentalRow:
    """Take over what the market says about one of our rentals: `confirm` or `ended`, as its state says."""
    if rental.state == "ended":
        return await ended(session, rental, now_us=now_us)
    return await confirm(session, rental, now_us=now_us)


async def confirm(session: AsyncSession, rental: Rental, *, now_us: int) -> RentalRow:
    """The market has it and it is not over. Keeps the earliest start and the latest sight."""
    row = await _locked(session, rental.tag)
    before = row.state
    _step(row, "confirm", now_us)
    if before in ("lost", "failed"):
        row.release_us, row.release_reason, row.settled = now_us, f"it turned up after it was {before}", False
    if row.state != "ended":
        _take(row, rental)
    return row


async def request_release(session: AsyncSession, rental_id: str, *, reason: str, now_us: int) -> RentalRow:
    """We want it gone. The first reason stays. The meter runs until the market confirms the end."""
    row = await _locked(session, rental_id)
    if row.release_us is None and row.state in OPEN:
        row.release_us, row.release_reason = now_us, reason
    _step(row, "release", now_us)
    return row


async def ended(session: AsyncSession, rental: Rental, *, now_us: int) -> RentalRow:
    """The market confirms the end. `rental.ended_at` must be set; the first confirmed end stays."""
    if rental.ended_at is None:
        raise ValueError(f"rental {rental.tag} is said to have ended but has no ended_at; ask the market again")
    row = await _locked(session, rental.tag)
    if row.state == "ended":
        return row
    reopened = row.state in ("lost", "failed")
    _take(row, rental)
    row.ended_us, row.end_reason, row.exit_status = micros(rental.ended_at), rental.end_reason, rental.exit_status
    if reopened:
        row.settled = False
    _step(row, "end", now_us)
    return row


async def failed(session: AsyncSession, rental_id: str, *, error: str, now_us: int) -> RentalRow:
    """Nothing was created. Raises IllegalTransition for a rental that the market had confirmed: that one is `lost`."""
    row = await _locked(session, rental_id)
    if row.started_us is not None:
        raise IllegalTransition(f"rental {rental_id} started at {row.started_us}; it can be lost or end, not fail")
    _step(row, "fail", now_us)
    row.error = error
    row.end_reason = "failed"
    return row


async def lost(session: AsyncSession, rental_id: str, *, error: str, now_us: int) -> RentalRow:
    """The market no longer knows it. It is taken to have ended when the market last said that it ran."""
    row = await _locked(session, rental_id)
    _step(row, "lose", now_us)
    if row.state == "lost":
        row.ended_us = row.last_seen_us if row.ended_us is None else row.ended_us
        row.error = error
        reason: EndReason = "failed"
        row.end_reason = row.end_reason or reason
    return row


async def locked(session: AsyncSession, rental_id: str) -> RentalRow:
    """The row, locked until the transaction ends. Raises RentalUnknown."""
    return await _locked(session, rental_id)


async def _locked(session: AsyncSession, rental_id: str) -> RentalRow:
    # Whoever waited for the lock sees what the other wrote: without `populate_existing` the session keeps what it read before.
    query = select(RentalRow).where(col(RentalRow.id) == rental_id).with_for_update()
    query = query.execution_options(populate_existing=True)
    row = (await session.scalars(query)).one_or_none()
    if row is None:
        raise RentalUnknown(f"rental {rental_id!r} is not in the database")
    return row


def _step(row: RentalRow, event: Event, now_us: int) -> None:
    before: State = row.state  # type: ignore[assignment]
    after = next_state(before, event)
    if after == before:
        return
    row.state = after
    _log.info(
        f"rental.{after}",
        rental=row.id,
        offer=row.offer_key,
        before=before,
        age_s=(now_us - row.created_us) // 1_000_000,
    )


def _take(row: RentalRow, rental: Rental) -> None:
    """The market's times, never going backwards, and its price: what is billed, not what was planned."""
    start, sight = maybe_micros(rental.started_at), micros(rental.seen_at)
    if start is not None:
        row.started_us = start if row.started_us is None else min(row.started_us, start)
    row.last_seen_us = sight if row.last_seen_us is None else max(row.last_seen_us, sight)
    if rental.currency == "USD":
        row.price_nano_hour = to_nano(rental.price)
    row.market_facts = dict(rental.facts)
