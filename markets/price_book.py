"""The price book: the latest that each market said, and why an offer in it must not be chosen.

A price is as old as the market's own `observed_at`, never as our last attempt to ask: a poll that fails leaves the
offers as they were and they grow stale in the open. What a poll changes is appended to the history (`markets.history`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

import structlog
from sqlalchemy import bindparam, case, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from markets.book_entry import KNOWN, Entry, Known, entry_of
from markets.heap import uncollected
from markets.history import append_changes
from markets.instants import maybe_moment, micros, moment
from markets.offer import Offer, encode_part
from markets.offer_record import offer_from_record
from markets.own_account import holder_of, provider_of
from markets.plausibility import Peers
from markets.price_search import Wanted, cheapest_rows, conditions
from markets.resellers import AGGREGATORS, FRESH_S, cheaper_elsewhere, gathered, is_stood_back
from markets.tables import JsonText, OfferRow, PollRow
from markets.token_book import token_ground

_log = structlog.get_logger("markets.price_book")
# A record comes as JSON text: the database's own encoder of JSON takes five times as long, a quarter of a cold poll.
_ENCODED = bindparam("record", type_=JsonText())
ALL = Wanted()
# No offer was observed so late.
_NEVER = 2**62
# Rows that one statement is given at a time.
_AT_ONCE = 2_000


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
    """What a poll changed: offers in it, how many of them are quarantined, how many are no longer listed, and how many
    changes went into the history."""

    offers: int
    quarantined: int
    gone: int
    changes: int = 0


async def store_card(
    session: AsyncSession, market: str, offers: Sequence[Offer], *, by: str, until_us: int, now_us: int
) -> Stored:
    """Take over a rate card: as `store_offers`, and its prices count until `until_us`, however old they are."""
    stored = await store_offers(session, market, offers, now_us=now_us)
    row = await session.get_one(PollRow, market)
    row.card_by, row.card_until_us = by, until_us
    await session.flush()
    return stored


async def store_offers(session: AsyncSession, market: str, offers: Sequence[Offer], *, now_us: int) -> Stored:
    """Take over one complete answer of `market`. Offers that it no longer has are kept and marked gone.

    The same answer again changes nothing. Raises ValueError when an offer is of another market or a key occurs twice: the
    adapter's keys are not identities.
    """
    known = await _known(session, market)
    entries = _entries(market, offers, known, await _peers(session, market))
    if tokens := [each for each in entries.values() if each.offer.pricing == "token"]:
        ground = await token_ground(session)
        for each in tokens:
            each.doubt_tokens(ground)
    if market in AGGREGATORS:
        resold = gathered(await _other_aggregators(session, market, now_us))
        for each in entries.values():
            each.stand_back(cheaper_elsewhere(each.offer, resold))
    gone = [each for key, each in known.items() if key not in entries and each.gone_us is None]
    await _mark_gone(session, gone, now_us)
    changed = await _write(session, market, entries.values(), known, now_us)
    changes = [each.change(known.get(each.key)) for each in changed]
    history = [*filter(None, changes), *(each.gone_change(now_us) for each in gone)]
    await append_changes(session, history)
    await _polled(session, market, ok_us=now_us)
    quarantined = sum(each.quarantined is not None for each in entries.values())
    stored = Stored(offers=len(entries), quarantined=quarantined, gone=len(gone), changes=len(history))
    _log.info(
        "offers.stored",
        market=market,
        offers=stored.offers,
        quarantined=quarantined,
        gone=stored.gone,
        changes=len(history),
    )
    return stored


async def poll_failed(
    session: AsyncSession, market: str, *, error: str, now_us: int, again_us: int | None = None
) -> None:
    """Remember that `market` could not be asked, and is not to be asked before `again_us`. Its offers stay as old as they are."""
    await _polled(session, market, failed_us=now_us, error=error, again_us=again_us)
    _log.warning("offers.poll_failed", market=market, error=error)


async def offers(
    session: AsyncSession,
    *,
    now_us: int,
    max_age_s: Mapping[str, int],
    default_max_age_s: int,
    wanted: Wanted = ALL,
    key: str | None = None,
    listed_at: Collection[str] | None = None,
    also: Collection[str] = (),
) -> list[Listed]:
    """All wanted offers by key, those that are gone or stale too, each with its reason. `max_age_s` is by market name; an account
    has its market's.

    With `listed_at` only those that these markets still list, and whatever is known of the keys `also`.
    """
    query = select(OfferRow).where(*await conditions(session, wanted)).order_by(col(OfferRow.key))
    if key is not None:
        query = query.where(col(OfferRow.key) == key)
    if listed_at is not None:
        is_listed = col(OfferRow.market).in_(listed_at) & col(OfferRow.gone_us).is_(None)
        query = query.where(is_listed | col(OfferRow.key).in_(also))
    rows = (await session.scalars(query)).all()
    cards = {row.market: row.card_until_us for row in await polls(session) if row.card_until_us is not None}
    ages = {name: max_age_s.get(provider_of(name), default_max_age_s) for name in {row.market for row in rows}}
    return [_listed(row, now_us, ages[row.market], cards.get(row.market)) for row in rows]


async def newer(session: AsyncSession, offers: Sequence[Offer]) -> list[tuple[str, datetime]]:
    """Which of `offers` the book has an observation of that is newer, and of when, by key."""
    given = {str(each.key): micros(each.observed_at) for each in offers}
    markets = {each.market for each in offers}
    query = select(col(OfferRow.key), col(OfferRow.observed_us)).where(col(OfferRow.market).in_(markets))
    found = (await session.execute(query.order_by(col(OfferRow.key)))).all()
    return [(key, moment(at_us)) for key, at_us in found if key in given and given[key] < at_us]


async def quarantined(session: AsyncSession, market: str, *, limit: int) -> list[tuple[str, str]]:
    """The first by key of what a market lists and the book does not believe, with the reason."""
    key, reason = col(OfferRow.key), col(OfferRow.quarantined)
    query = select(key, reason).where(col(OfferRow.market) == market, col(OfferRow.gone_us).is_(None))
    found = await session.execute(query.where(reason.is_not(None)).order_by(key).limit(limit))
    return [(key, reason or "") for key, reason in found.all()]


async def count_by_market(session: AsyncSession) -> dict[str, int]:
    """How many offers the book has of each market, gone ones too. Read from the index alone."""
    query = select(col(OfferRow.market), func.count()).group_by(col(OfferRow.market))
    return {market: int(count) for market, count in (await session.execute(query)).all()}


async def newest(session: AsyncSession, markets: Collection[str]) -> dict[str, int]:
    """When the newest price of each of these markets was observed, in microseconds; those that list nothing are left out."""
    query = (
        select(col(OfferRow.market), func.max(col(OfferRow.observed_us)))
        .where(col(OfferRow.market).in_(markets), col(OfferRow.gone_us).is_(None))
        .group_by(col(OfferRow.market))
    )
    return {market: int(at_us) for market, at_us in (await session.execute(query)).all()}


async def alternatives(session: AsyncSession, accelerator: str, model: str) -> list[Offer]:
    """What a rental of this accelerator is compared with: on-demand machines that have it, and endpoints that sell the
    model, of all markets that list them."""
    sells = f"/{encode_part(model)}/"
    on_demand = (col(OfferRow.pricing) == "on_demand") & (col(OfferRow.accelerator) == accelerator)
    tokens = (col(OfferRow.pricing) == "token") & col(OfferRow.key).contains(sells, autoescape=True)
    query = select(OfferRow).where(col(OfferRow.gone_us).is_(None), on_demand | tokens)
    return [offer_of(row) for row in await session.scalars(query)]


async def cheapest(
    session: AsyncSession,
    wanted: Wanted,
    *,
    now_us: int,
    max_age_s: Mapping[str, int],
    default_max_age_s: int,
    holder: str | None = None,
    limit: int = 10,
) -> list[Listed]:
    """The wanted offers that may be chosen now, by the price of the whole machine: believed, listed, fresh, not sold out.

    As `offers` would say, of a book of 100,000 without reading it. Of own accounts those of `holder`; none without a price.
    """
    valid = {
        row.market: _valid_from(row, now_us, max_age_s.get(provider_of(row.market), default_max_age_s))
        for row in await polls(session)
        if holder_of(row.market) in (None, holder)
    }
    if not valid:
        return []
    rows = await cheapest_rows(
        session,
        wanted,
        col(OfferRow.quarantined).is_(None),
        col(OfferRow.gone_us).is_(None),
        col(OfferRow.price_nano_hour).is_not(None),
        func.coalesce(col(OfferRow.capacity), 1) > 0,
        # Not also by a list of the markets: SQLite would go by their index, through all of a market's offers.
        col(OfferRow.observed_us) >= case(valid, value=col(OfferRow.market), else_=_NEVER),
        limit=limit,
    )
    return [_told(row, offer_of(row), now_us, None) for row in rows]


def _valid_from(poll: PollRow, now_us: int, max_age_s: int) -> int:
    """The oldest observation of a market that still counts, in microseconds; a card's prices count until its day."""
    if poll.card_until_us is not None:
        return 0 if now_us <= poll.card_until_us else now_us + 1
    return now_us - (max_age_s + 1) * 1_000_000 + 1


async def polls(session: AsyncSession) -> Sequence[PollRow]:
    """How the latest poll of each market went."""
    return (await session.scalars(select(PollRow).order_by(col(PollRow.market)))).all()


def offer_of(row: OfferRow) -> Offer:
    """The offer as it was last observed. What was said unchanged keeps its record and is as new as `observed_us`; evidence
    that was seen with it was seen with it again."""
    stored = offer_from_record(row.record)
    if micros(stored.observed_at) == row.observed_us:
        return stored
    at = moment(row.observed_us)
    renewed = tuple(
        replace(each, observed_at=at) if each.observed_at == stored.observed_at else each for each in stored.evidence
    )
    return replace(stored, observed_at=at, evidence=renewed)


def exclusion(
    offer: Offer, *, gone_us: int | None, now_us: int, max_age_s: int, card_until_us: int | None = None
) -> str | None:
    """Why `offer` must not be chosen now, or None. The first reason in the order: quarantine, gone, stale, sold out.

    The prices of a rate card are stale from `card_until_us` on, however old they are.

    Sold out is not among them: capacity 0 is data that the plan's funnel counts by itself.
    """
    if offer.quarantined is not None:
        return offer.quarantined
    if gone_us is not None:
        return f"offer {offer.key}: no longer listed by its market since {moment(gone_us).isoformat()}"
    if card_until_us is not None:
        if now_us <= card_until_us:
            return None
        return (
            f"offer {offer.key}: its rate card was valid until {moment(card_until_us).isoformat()}; hand in a newer one"
        )
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


def _listed(row: OfferRow, now_us: int, max_age_s: int, card_until_us: int | None) -> Listed:
    offer = offer_of(row)
    why = exclusion(offer, gone_us=row.gone_us, now_us=now_us, max_age_s=max_age_s, card_until_us=card_until_us)
    return _told(row, offer, now_us, why)


def _told(row: OfferRow, offer: Offer, now_us: int, excluded: str | None) -> Listed:
    seen_at = maybe_moment(row.seen_us) or offer.observed_at
    return Listed(offer, seen_at, excluded, unlocated(offer, now_us=now_us))


async def _known(session: AsyncSession, market: str) -> dict[str, Known]:
    table = OfferRow.__table__  # type: ignore[attr-defined]
    query = select(*(table.c[name] for name in KNOWN)).where(table.c.market == market)
    rows = (await session.execute(query)).all()
    with uncollected():
        return {row[0]: Known._make(row) for row in rows}


async def _peers(session: AsyncSession, market: str) -> dict[tuple[str, str], Peers]:
    """The other markets' cheapest per device, by accelerator and pricing. Accounts of one provider are one market: its list in
    three accounts is one opinion, and none of another market about its own."""
    cheapest = (
        select(
            col(OfferRow.accelerator),
            col(OfferRow.pricing),
            col(OfferRow.market),
            func.min(col(OfferRow.gpu_nano_hour)),
        )
        .where(col(OfferRow.market) != market, col(OfferRow.gpu_nano_hour).is_not(None), col(OfferRow.gpu_count) > 0)
        .where(col(OfferRow.gone_us).is_(None))
        .group_by(col(OfferRow.accelerator), col(OfferRow.pricing), col(OfferRow.market))
    )
    found: dict[tuple[str, str], dict[str, int]] = {}
    for accelerator, pricing, other, least in (await session.execute(cheapest)).all():
        if (provider := provider_of(other)) != provider_of(market):
            of_pool = found.setdefault((accelerator, pricing), {})
            of_pool[provider] = min(int(least or 0), of_pool.get(provider, int(least or 0)))
    return {pool: Peers(cheapest) for pool, cheapest in found.items()}


def _entries(
    market: str, offers: Sequence[Offer], known: Mapping[str, Known], peers: Mapping[tuple[str, str], Peers]
) -> dict[str, Entry]:
    with uncollected():
        return _judged(market, offers, known, peers)


def _judged(
    market: str, offers: Sequence[Offer], known: Mapping[str, Known], peers: Mapping[tuple[str, str], Peers]
) -> dict[str, Entry]:
    entries: dict[str, Entry] = {}
    for offer in offers:
        key = str(offer.key)
        if offer.market != market or key in entries:
            raise ValueError(
                f"offer {key} from market {market!r} is of another market or listed twice; mend the adapter"
            )
        entries[key] = entry_of(key, offer)
    singles = _singles(entries.values())
    for entry in entries.values():
        if entry.gpu_nano_hour is not None:
            entry.doubt(
                known.get(entry.key),
                peers.get(entry.pool[:2]),
                singles.get(entry.pool),
            )
    return entries


def _singles(entries: Iterable[Entry]) -> dict[tuple[str, str, str | None], int]:
    """The cheapest machine with one whole device, by device, pricing and region."""
    found: dict[tuple[str, str, str | None], int] = {}
    for entry in entries:
        chip, price = entry.offer.accelerator, entry.gpu_nano_hour
        if price is not None and chip.count == 1 and chip.fraction == 1:
            found[entry.pool] = min(price, found.get(entry.pool, price))
    return found


async def _other_aggregators(session: AsyncSession, market: str, now_us: int) -> list[Offer]:
    """What they sell now, at a price that is believed."""
    query = select(OfferRow).where(
        col(OfferRow.market).in_(AGGREGATORS - {market}),
        col(OfferRow.gone_us).is_(None),
        col(OfferRow.observed_us) > now_us - FRESH_S * 1_000_000,
    )
    rows = await session.scalars(query)
    return [offer_of(row) for row in rows if row.quarantined is None or is_stood_back(row.quarantined)]


async def _mark_gone(session: AsyncSession, gone: Sequence[Known], now_us: int) -> None:
    table = OfferRow.__table__  # type: ignore[attr-defined]
    statement = update(table).where(table.c.key == bindparam("b_key")).values(gone_us=now_us)
    for some in _batches([{"b_key": each.key} for each in gone]):
        await (await session.connection()).execute(statement, some)


async def _write(
    session: AsyncSession, market: str, entries: Iterable[Entry], known: Mapping[str, Known], now_us: int
) -> list[Entry]:
    """Insert what is new, update what is different, and say of the rest that it was seen again. The new and different ones."""
    connection = await session.connection()
    table = OfferRow.__table__  # type: ignore[attr-defined]
    with uncollected():
        new, different, again = _sorted_out(entries, known)
    await _seen_again(session, market, again, known, now_us)
    for start in range(0, len(new), _AT_ONCE):
        with uncollected():
            some = [entry.columns(now_us) for entry in new[start : start + _AT_ONCE]]
        bound: dict[str, Any] = {name: bindparam(name) for name in some[0]} | {"record": _ENCODED}
        await connection.execute(insert(table).values(bound), some)
    columns = [{f"b_{name}": value for name, value in entry.columns(now_us).items()} for entry in different]
    if columns:
        values: dict[str, Any] = {name[2:]: bindparam(name) for name in columns[0] if name not in ("b_key", "b_market")}
        values["record"] = bindparam("b_record", type_=JsonText())
        statement = update(table).where(table.c.key == bindparam("b_key")).values(values)
        for some in _batches(columns):
            await connection.execute(statement, some)
    for row in [each for each in session.identity_map.values() if isinstance(each, OfferRow)]:
        session.expire(row)  # written past the session
    return [*new, *different]


def _sorted_out(
    entries: Iterable[Entry], known: Mapping[str, Known]
) -> tuple[list[Entry], list[Entry], dict[int, list[str]]]:
    """What is new, what is different, and the keys of what was seen again, by when."""
    new: list[Entry] = []
    different: list[Entry] = []
    again: dict[int, list[str]] = {}
    for entry in entries:
        before = known.get(entry.key)
        if before is None:
            new.append(entry)
        elif entry.observed_us < before.observed_us:
            # an answer that overtook this one is newer
            again.setdefault(before.observed_us, []).append(entry.key)
        elif entry.is_as(before):
            again.setdefault(entry.observed_us, []).append(entry.key)
        else:
            different.append(entry)
    return new, different, again


async def _seen_again(
    session: AsyncSession, market: str, again: Mapping[int, Sequence[str]], known: Mapping[str, Known], now_us: int
) -> None:
    """Most offers of a poll are unchanged and of one moment: one statement for those, one row each for the others."""
    if not again:
        return
    table = OfferRow.__table__  # type: ignore[attr-defined]
    connection = await session.connection()
    usual_us = max(again, key=lambda at_us: len(again[at_us]))
    count = len(again[usual_us])
    others = [(key, at_us) for at_us, keys in again.items() if at_us != usual_us or count == 1 for key in keys]
    if count > 1:
        await connection.execute(
            update(table)
            .where(table.c.market == market, table.c.gone_us.is_(None), table.c.observed_us < usual_us)
            .values(observed_us=usual_us, seen_us=now_us)
        )
    rows = [
        {"b_key": key, "b_at": at_us}
        for key, at_us in others
        if count > 1 or known[key].observed_us != at_us or known[key].gone_us is not None
    ]
    statement = update(table).where(table.c.key == bindparam("b_key"))
    for some in _batches(rows):
        await connection.execute(statement.values(observed_us=bindparam("b_at"), seen_us=now_us, gone_us=None), some)


def _batches(rows: Sequence[dict[str, Any]]) -> Iterable[list[dict[str, Any]]]:
    for start in range(0, len(rows), _AT_ONCE):
        yield list(rows[start : start + _AT_ONCE])


async def _polled(
    session: AsyncSession,
    market: str,
    *,
    ok_us: int | None = None,
    failed_us: int | None = None,
    error: str | None = None,
    again_us: int | None = None,
) -> None:
    row = await session.get(PollRow, market)
    if row is None:
        row = PollRow(market=market, failures=0)
        session.add(row)
    if ok_us is not None:
        row.ok_us, row.error, row.failures, row.again_us = ok_us, None, 0, None
        row.card_by, row.card_until_us = None, None
    if failed_us is not None:
        row.failed_us, row.error, row.failures, row.again_us = failed_us, error, row.failures + 1, again_us
    await session.flush()
