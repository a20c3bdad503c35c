"""The price book: the latest that each market said, and why an offer in it must not be chosen.

A price is as old as the market's own `observed_at`, never as our last attempt to ask: a poll that fails leaves the
offers as they were and they grow stale in the open.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import structlog
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from ledger.money import to_nano
from markets.instants import maybe_moment, micros, moment
from markets.offer import Offer, price_problem, quarantine
from markets.offer_record import offer_from_record, record_from_offer
from markets.tables import OfferRow, PollRow

_log = structlog.get_logger("markets.price_book")


@dataclass(frozen=True, slots=True)
class Listed:
    """An offer as the book has it. `excluded` says why it must not be chosen; None: it may be.

    `unlocated` is a flag, not an exclusion: without a known country and evidence for it, no residency rule that asks
    for a place is satisfied, and that is for the policy to say.
    """

    offer: Offer
    seen_at: datetime
    excluded: str | None
    unlocated: str | None


@dataclass(frozen=True, slots=True)
class Stored:
    """What a poll changed: offers in it, how many of them are quarantined, and how many are no longer listed."""

    offers: int
    quarantined: int
    gone: int


async def store_offers(session: AsyncSession, market: str, offers: Sequence[Offer], *, now_us: int) -> Stored:
    """Take over one complete answer of `market`. Offers that it no longer has are kept and marked gone.

    Raises ValueError when an offer is of another market or a key occurs twice: the adapter's keys are not identities.
    """
    rows = {row.key: row for row in await session.scalars(select(OfferRow).where(col(OfferRow.market) == market))}
    fresh: set[str] = set()
    quarantined = 0
    for offer in offers:
        key = str(offer.key)
        if offer.market != market or key in fresh:
            raise ValueError(
                f"offer {key} from market {market!r} is of another market or listed twice; mend the adapter"
            )
        fresh.add(key)
        believed = _believed(offer)
        quarantined += believed.quarantined is not None
        row = rows.get(key)
        if row is None:
            session.add(_row(believed, now_us))
        else:
            _refresh(row, believed, now_us)
    gone = [row for key, row in rows.items() if key not in fresh and row.gone_us is None]
    for row in gone:
        row.gone_us = now_us
    await _polled(session, market, ok_us=now_us)
    stored = Stored(offers=len(fresh), quarantined=quarantined, gone=len(gone))
    _log.info("offers.stored", market=market, offers=stored.offers, quarantined=quarantined, gone=stored.gone)
    return stored


async def poll_failed(session: AsyncSession, market: str, *, error: str, now_us: int) -> None:
    """Remember that `market` could not be asked. Its offers stay as old as they are."""
    await _polled(session, market, failed_us=now_us, error=error)
    _log.warning("offers.poll_failed", market=market, error=error)


async def offers(
    session: AsyncSession,
    *,
    now_us: int,
    max_age_s: Mapping[str, int],
    default_max_age_s: int,
    market: str | None = None,
) -> list[Listed]:
    """All offers by key, those that are gone or stale too, each with its reason. `max_age_s` is by market name."""
    query = select(OfferRow).order_by(col(OfferRow.key))
    if market is not None:
        query = query.where(col(OfferRow.market) == market)
    rows = (await session.scalars(query)).all()
    return [_listed(row, now_us, max_age_s.get(row.market, default_max_age_s)) for row in rows]


async def polls(session: AsyncSession) -> Sequence[PollRow]:
    """How the latest poll of each market went."""
    return (await session.scalars(select(PollRow).order_by(col(PollRow.market)))).all()


def exclusion(offer: Offer, *, gone_us: int | None, now_us: int, max_age_s: int) -> str | None:
    """Why `offer` must not be chosen now, or None. The first reason in the order: quarantine, gone, stale, sold out.

    Sold out is not among them: capacity 0 is data that the plan's funnel counts by itself.
    """
    if offer.quarantined is not None:
        return offer.quarantined
    if gone_us is not None:
        return f"offer {offer.key}: no longer listed by its market since {moment(gone_us).isoformat()}"
    age_s = (now_us - micros(offer.observed_at)) // 1_000_000
    if age_s > max_age_s:
        observed = offer.observed_at.isoformat()
        return (
            f"offer {offer.key}: price is stale, observed {observed}, {age_s} s ago; {max_age_s} s is the most allowed"
        )
    return None


def unlocated(offer: Offer, *, now_us: int) -> str | None:
    """Why we do not know where `offer` is, or None. Evidence counts only while its ttl lasts."""
    if offer.country is None:
        return f"offer {offer.key}: country is unknown"
    if not any(micros(each.observed_at + each.ttl) > now_us for each in offer.evidence):
        return f"offer {offer.key}: no current evidence for country {offer.country}"
    return None


def _believed(offer: Offer) -> Offer:
    problem = price_problem(offer)
    return quarantine(offer, problem) if problem else offer


def _listed(row: OfferRow, now_us: int, max_age_s: int) -> Listed:
    offer = offer_from_record(row.record)
    return Listed(
        offer=offer,
        seen_at=maybe_moment(row.seen_us) or offer.observed_at,
        excluded=exclusion(offer, gone_us=row.gone_us, now_us=now_us, max_age_s=max_age_s),
        unlocated=unlocated(offer, now_us=now_us),
    )


def _row(offer: Offer, now_us: int) -> OfferRow:
    return OfferRow(key=str(offer.key), market=offer.market, **_columns(offer, now_us))


def _refresh(row: OfferRow, offer: Offer, now_us: int) -> None:
    row.gone_us = None
    if micros(offer.observed_at) < row.observed_us:
        return  # an answer that overtook this one is newer
    for name, value in _columns(offer, now_us).items():
        setattr(row, name, value)


def _columns(offer: Offer, now_us: int) -> dict[str, Any]:
    priced = offer.price is not None and offer.quarantined is None
    return {
        "accelerator": offer.accelerator.name,
        "pricing": offer.pricing,
        "country": offer.country,
        "price_nano_hour": to_nano(offer.price) if priced and offer.price is not None else None,
        "capacity": offer.capacity,
        "quarantined": offer.quarantined,
        "observed_us": micros(offer.observed_at),
        "seen_us": now_us,
        "record": record_from_offer(offer),
    }


async def _polled(
    session: AsyncSession,
    market: str,
    *,
    ok_us: int | None = None,
    failed_us: int | None = None,
    error: str | None = None,
) -> None:
    row = await session.get(PollRow, market)
    if row is None:
        row = PollRow(market=market)
        session.add(row)
    if ok_us is not None:
        row.ok_us, row.error = ok_us, None
    if failed_us is not None:
        row.failed_us, row.error = failed_us, error
    await session.flush()
