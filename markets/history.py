"""The price book's memory: what changed when, rolled up by day, and what a pool does at which hour of the day.

Only changes are stored: between two of them the older one holds. A quarantined or vanished offer has no price while it lasts,
and an hour without a price counts neither as cheap nor as free.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import structlog
from sqlalchemy import delete, func, insert, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from markets.tables import ChangeRow, DayRow

HOUR_US = 3_600_000_000
DAY_US = 24 * HOUR_US
PPM = 1_000_000
_AT_ONCE = 2_000
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
    session: AsyncSession, *, now_us: int, keep_days: int, keep_rolled_days: int, limit: int = 2_000
) -> int:
    """Put days that are older than `keep_days` into one row an offer, and remove their changes; days of the roll-up older than
    `keep_rolled_days` go as well. At most `limit` offers at a time. Returns how many days were written.

    The last change before the kept days stays: it is what held when they began.
    """
    horizon_us = now_us // DAY_US * DAY_US - keep_days * DAY_US
    aged = select(col(ChangeRow.key)).where(col(ChangeRow.at_us) < horizon_us).group_by(col(ChangeRow.key))
    written = 0
    for key in (await session.scalars(aged.having(func.count() > 1).limit(limit))).all():
        written += await _roll_up(session, key, horizon_us)
    await session.execute(delete(DayRow).where(col(DayRow.day_us) < now_us - keep_rolled_days * DAY_US))
    if written:
        _log.info("history.rolled_up", days=written)
    return written


async def _roll_up(session: AsyncSession, key: str, horizon_us: int) -> int:
    """One offer. The days from its first change to the horizon that are not rolled up yet."""
    last_day = await session.scalar(select(func.max(col(DayRow.day_us))).where(col(DayRow.key) == key))
    query = select(ChangeRow).where(col(ChangeRow.key) == key, col(ChangeRow.at_us) < horizon_us)
    rows = (await session.scalars(query.order_by(col(ChangeRow.at_us), col(ChangeRow.id)))).all()
    first_us = rows[0].at_us // DAY_US * DAY_US if last_day is None else last_day + DAY_US
    told = [_change(row) for row in rows]
    found = [day_of(key, told, day_us) for day_us in range(first_us, horizon_us, DAY_US)]
    session.add_all(found)
    await session.flush()
    await session.execute(
        delete(ChangeRow)
        .where(col(ChangeRow.id).in_([row.id for row in rows[:-1]]))
        .execution_options(synchronize_session=False)
    )
    return len(found)


def day_of(key: str, told: Sequence[Change], day_us: int) -> DayRow:
    """The day that begins at `day_us`, of what was `told` (oldest first). Pure."""
    whole = list(spans(told, day_us, day_us + DAY_US))
    priced = [each for each in whole if each.change.price_nano_hour is not None]
    listed = sum(each.length_us for each in whole if each.change.state == "listed")
    available = sum(each.length_us for each in whole if each.change.state == "listed" and each.change.capacity != 0)
    prices = [each.change.price_nano_hour for each in priced if each.change.price_nano_hour is not None]
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
    paid = sum((each.change.price_nano_hour or 0) * each.length_us for each in priced)
    return paid // held if held else None


def _change(row: ChangeRow) -> Change:
    return Change(row.at_us, row.state, row.price_nano_hour, row.capacity, row.input_nano, row.output_nano, row.reason)
