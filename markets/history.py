"""The price book's memory: what changed when, rolled up by day, and what a pool does at which hour of the day.

Only changes are stored: between two of them the older one holds. A quarantined or vanished offer has no price while it lasts,
and an hour without a price counts neither as cheap nor as free.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import structlog
from sqlalchemy import delete, exists, func, insert, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from markets.tables import ChangeRow, DayRow, OfferRow, RentalRow

HOUR_US = 3_600_000_000
DAY_US = 24 * HOUR_US
PPM = 1_000_000
_AT_ONCE = 2_000
# Of one transaction: rows that are written, and changes that are read for one offer.
_MOST_DAYS, _MOST_CHANGES = 5_000, 20_000
_log = structlog.get_logger("markets.history")


@dataclass(frozen=True, slots=True)
class Change:
    """What held from `at_us` on. Nano-USD per instance-hour; for tokens, per million in and out."""

    at_us: int
    state: str
    price_nano_hour: int | None
    capacity: int | None
    input_nano: int | None = None
    output_nano: int | None = None
    reason: str | None = None

    @property
    def nano(self) -> int | None:
        """The one price that a day or a chart has: of the hour; where tokens are sold, of a million that are written."""
        return self.output_nano if self.price_nano_hour is None else self.price_nano_hour


@dataclass(frozen=True, slots=True)
class Span:
    """A change and how long it held, within what was asked for."""

    change: Change
    from_us: int
    to_us: int

    @property
    def length_us(self) -> int:
        return self.to_us - self.from_us


@dataclass(frozen=True, slots=True)
class HourOfDay:
    """One of the 24 hours (UTC) of a pool: time-weighted mean price per device-hour, and in which part of the time it was
    listed, and had room. None: never seen at that hour."""

    hour: int
    mean_nano: int | None
    listed_ppm: int | None
    available_ppm: int | None


def is_rentable(change: Change) -> bool:
    """Whether there was any to rent while it held."""
    return change.state == "listed" and change.capacity != 0


async def append_changes(session: AsyncSession, changes: Sequence[Mapping[str, Any]]) -> None:
    """Write them down, once and for ever. The maps have ChangeRow's columns without the id."""
    table = ChangeRow.__table__  # type: ignore[attr-defined]
    connection = await session.connection()
    for start in range(0, len(changes), _AT_ONCE):
        await connection.execute(insert(table), [dict(each) for each in changes[start : start + _AT_ONCE]])


async def changes(session: AsyncSession, key: str, *, from_us: int, to_us: int) -> list[Change]:
    """What was known of the offer in the half-open period, oldest first; the first may be older and still hold in it."""
    before = select(func.max(col(ChangeRow.at_us))).where(col(ChangeRow.key) == key, col(ChangeRow.at_us) <= from_us)
    since_us = (await session.scalar(before)) or from_us
    query = (
        select(ChangeRow)
        .where(col(ChangeRow.key) == key, col(ChangeRow.at_us) >= since_us, col(ChangeRow.at_us) < to_us)
        .order_by(col(ChangeRow.at_us), col(ChangeRow.id))
    )
    return [_change(row) for row in await session.scalars(query)]


async def days(session: AsyncSession, key: str, *, from_us: int, to_us: int) -> Sequence[DayRow]:
    """The days of the offer that were rolled up, oldest first."""
    query = (
        select(DayRow)
        .where(col(DayRow.key) == key, col(DayRow.day_us) >= from_us - DAY_US, col(DayRow.day_us) < to_us)
        .order_by(col(DayRow.day_us))
    )
    return (await session.scalars(query)).all()


async def roll_up(
    session: AsyncSession,
    *,
    now_us: int,
    keep_days: int,
    keep_rolled_days: int,
    limit: int = 2_000,
    most_days: int = _MOST_DAYS,
) -> int:
    """Put days that are older than `keep_days` into one row an offer, and remove their changes; days of the roll-up older than
    `keep_rolled_days` go as well, and are not written to begin with. At most `limit` offers and about `most_days` days at a time.
    Returns how many days were written: call it until that is 0.

    The last change before the kept days stays: it is what held when they began.
    """
    horizon_us = now_us // DAY_US * DAY_US - keep_days * DAY_US
    oldest_us = -(-now_us // DAY_US) * DAY_US - keep_rolled_days * DAY_US
    aged = select(col(ChangeRow.key)).where(col(ChangeRow.at_us) < horizon_us).group_by(col(ChangeRow.key))
    written = 0
    for key in (await session.scalars(aged.having(func.count() > 1).limit(limit))).all():
        if written >= most_days:
            break
        written += await _roll_up(session, key, oldest_us, horizon_us, most_days - written)
    await session.execute(delete(DayRow).where(col(DayRow.day_us) < now_us - keep_rolled_days * DAY_US))
    if written:
        _log.info("history.rolled_up", days=written)
    return written


async def _roll_up(session: AsyncSession, key: str, oldest_us: int, horizon_us: int, most_days: int) -> int:
    """One offer. The days from its first change (a card's may be of years ago) to the horizon that are not rolled up yet."""
    mine = col(ChangeRow.key) == key
    last_day = await session.scalar(select(func.max(col(DayRow.day_us))).where(col(DayRow.key) == key))
    first = (await session.scalar(select(func.min(col(ChangeRow.at_us))).where(mine))) or 0
    first_us = max(oldest_us, first // DAY_US * DAY_US if last_day is None else last_day + DAY_US)
    end_us = min(horizon_us, first_us + most_days * DAY_US)
    since_us = (
        await session.scalar(select(func.max(col(ChangeRow.at_us))).where(mine, col(ChangeRow.at_us) <= first_us))
    ) or first
    query = select(ChangeRow).where(mine, col(ChangeRow.at_us) >= since_us)
    query = query.order_by(col(ChangeRow.at_us), col(ChangeRow.id))
    rows = (await session.scalars(query.where(col(ChangeRow.at_us) < end_us).limit(_MOST_CHANGES))).all()
    if len(rows) == _MOST_CHANGES:  # as many whole days as they cover, but one at least
        end_us = min(end_us, max(rows[-1].at_us // DAY_US * DAY_US, first_us + DAY_US))
        rows = (await session.scalars(query.where(col(ChangeRow.at_us) < end_us))).all()
    told = [_change(row) for row in rows]
    found = [day_of(key, told, day_us) for day_us in range(first_us, end_us, DAY_US)]
    session.add_all(found)
    await session.flush()
    if end_us >= horizon_us:
        await _forget_changes(session, key, horizon_us)
    return len(found)


async def _forget_changes(session: AsyncSession, key: str, horizon_us: int) -> None:
    """All before the horizon but the last. By time and not by their ids: SQLite takes 32,766 variables, and one price that
    moved every minute of a month made more."""
    mine = col(ChangeRow.key) == key
    newest = select(col(ChangeRow.at_us), col(ChangeRow.id)).where(mine, col(ChangeRow.at_us) < horizon_us)
    at_us, last = (
        await session.execute(newest.order_by(col(ChangeRow.at_us).desc(), col(ChangeRow.id).desc()).limit(1))
    ).one()
    is_older = (col(ChangeRow.at_us) < at_us) | ((col(ChangeRow.at_us) == at_us) & (col(ChangeRow.id) < last))
    await session.execute(delete(ChangeRow).where(mine, is_older).execution_options(synchronize_session=False))


async def forget_gone(session: AsyncSession, *, now_us: int, keep_days: int, limit: int = 2_000) -> int:
    """Remove offers that have been gone for longer than their changes are kept, unless a rental names them: marketplaces list
    a new one for each machine, thousands a day. At most `limit` at a time; returns how many. Their history stays."""
    is_named = exists().where(col(RentalRow.offer_key) == col(OfferRow.key))
    old = select(col(OfferRow.key)).where(col(OfferRow.gone_us) < now_us - keep_days * DAY_US, ~is_named).limit(limit)
    keys = (await session.scalars(old)).all()
    if keys:
        await session.execute(
            delete(OfferRow).where(col(OfferRow.key).in_(keys)).execution_options(synchronize_session=False)
        )
        _log.info("offers.forgotten", offers=len(keys))
    return len(keys)


def day_of(key: str, told: Sequence[Change], day_us: int) -> DayRow:
    """The day that begins at `day_us`, of what was `told` (oldest first). Pure."""
    whole = list(spans(told, day_us, day_us + DAY_US))
    priced = [each for each in whole if each.change.nano is not None]
    listed = sum(each.length_us for each in whole if each.change.state == "listed")
    available = sum(each.length_us for each in whole if each.change.state == "listed" and each.change.capacity != 0)
    prices = [each.change.nano for each in priced if each.change.nano is not None]
    return DayRow(
        key=key,
        day_us=day_us,
        changes=sum(day_us <= each.at_us < day_us + DAY_US for each in told),
        min_nano=min(prices, default=None),
        mean_nano=_mean(priced),
        max_nano=max(prices, default=None),
        last_nano=prices[-1] if prices else None,
        listed_ppm=listed * PPM // DAY_US,
        available_ppm=available * PPM // DAY_US,
    )


def spans(told: Sequence[Change], from_us: int, to_us: int) -> Iterator[Span]:
    """What held how long within [from_us, to_us). Before the first change nothing is known, and nothing is said."""
    for index, change in enumerate(told):
        until_us = told[index + 1].at_us if index + 1 < len(told) else to_us
        start, end = max(change.at_us, from_us), min(until_us, to_us)
        if start < end:
            yield Span(change, start, end)


def by_hour(offers: Iterable[tuple[Sequence[Change], int]], from_us: int, to_us: int) -> list[HourOfDay]:
    """The time-of-day profile of a pool: its offers' changes, each with its number of devices. Pure.

    Raises ValueError when the period is not one of whole hours.
    """
    if from_us % HOUR_US or to_us % HOUR_US:
        raise ValueError(f"profile of {from_us} to {to_us}: give whole hours, in microseconds UTC")
    paid, held, listed, roomy, known = ([0] * 24 for _ in range(5))
    for told, devices in offers:
        for span in spans(told, from_us, to_us):
            price = span.change.price_nano_hour
            for hour, length in _hours(span):
                known[hour] += length
                if span.change.state == "listed":
                    listed[hour] += length
                    roomy[hour] += length if span.change.capacity != 0 else 0
                if price is not None:
                    paid[hour] += price * length // max(1, devices)
                    held[hour] += length
    return [
        HourOfDay(
            hour,
            paid[hour] // held[hour] if held[hour] else None,
            listed[hour] * PPM // known[hour] if known[hour] else None,
            roomy[hour] * PPM // known[hour] if known[hour] else None,
        )
        for hour in range(24)
    ]


def _hours(span: Span) -> Iterator[tuple[int, int]]:
    """(hour of the day, microseconds of it) that a span covers."""
    at = span.from_us
    while at < span.to_us:
        end = min((at // HOUR_US + 1) * HOUR_US, span.to_us)
        yield at // HOUR_US % 24, end - at
        at = end


def _mean(priced: Sequence[Span]) -> int | None:
    held = sum(each.length_us for each in priced)
    paid = sum((each.change.nano or 0) * each.length_us for each in priced)
    return paid // held if held else None


def _change(row: ChangeRow) -> Change:
    return Change(row.at_us, row.state, row.price_nano_hour, row.capacity, row.input_nano, row.output_nano, row.reason)
