"""Rates of exchange: what one unit of a currency or coin was worth in another, dated, by whose word. Append-only.

A rate counts from its day on until a later one of the pair is known; of several for one time the one that was given last, a
correction. Whoever converts says at which time: prices at the newest rate, invoices at that of their month's end.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from ledger.errors import MalformedRate, NoRate, RateReused
from ledger.tables import Rate

USD = "USD"
_UNIT = re.compile(r"[A-Z][A-Z0-9]{1,9}").fullmatch
# What a later conversion may multiply with: 12 digits before the point and 18 after it.
_MOST = Decimal("1e12")
_LEAST = Decimal("1e-18")


_Key = tuple[str, str, int, str]


@dataclass(frozen=True, slots=True)
class DatedRate:
    """One `unit` was worth `rate` of `quote` at `at_us` (microseconds UTC; the start of its day where only a day was said)."""

    unit: str
    quote: str
    at_us: int
    source: str
    rate: Decimal


async def record(session: AsyncSession, rates: Sequence[DatedRate]) -> int:
    """Write down what is not known yet; how many that were. All of them or none.

    Raises MalformedRate for a unit, source or number that is none, RateReused where the same source said otherwise of the
    same time before: what it said then was used.
    """
    for each in rates:
        _check(each)
    before = await _before(session, rates)
    words: dict[tuple[str, str, int], int] = {}
    for (unit, quote, at_us, _), row in before.items():
        words[unit, quote, at_us] = max(words.get((unit, quote, at_us), 0), row.word + 1)
    new: dict[_Key, DatedRate] = {}
    for each in rates:
        key = (each.unit, each.quote, each.at_us, each.source)
        said = new[key].rate if key in new else Decimal(before[key].rate) if key in before else None
        if said is None:
            new[key] = each
        elif said != each.rate:
            raise RateReused(
                f"{each.source} said {said:f} for {each.unit} in {each.quote} at {each.at_us} before, and now "
                f"{each.rate:f}; rates are never changed: give the correction a source of its own"
            )
    for each in new.values():
        word = words.get((each.unit, each.quote, each.at_us), 0)
        words[each.unit, each.quote, each.at_us] = word + 1
        rate = f"{each.rate:f}"
        session.add(Rate(unit=each.unit, quote=each.quote, at_us=each.at_us, source=each.source, rate=rate, word=word))
    await session.flush()
    return len(new)


async def rate_at(session: AsyncSession, unit: str, *, at_us: int, quote: str = USD) -> DatedRate:
    """The newest rate that is not after `at_us`, the last word of its time. Raises NoRate when there is none."""
    query = (
        select(Rate)
        .where(col(Rate.unit) == unit, col(Rate.quote) == quote, col(Rate.at_us) <= at_us)
        .order_by(col(Rate.at_us).desc(), col(Rate.word).desc(), col(Rate.source))
        .limit(1)
    )
    row = await session.scalar(query)
    if row is None:
        raise NoRate(f"no rate of {unit} to {quote} is known at {at_us}; give one (`broker ledger rates add`)")
    return _dated(row)


async def newest(session: AsyncSession, *, at_us: int, quote: str = USD) -> dict[str, DatedRate]:
    """`rate_at` of every unit that has a rate, by unit."""
    units = select(col(Rate.unit)).where(col(Rate.quote) == quote, col(Rate.at_us) <= at_us).distinct()
    names = (await session.scalars(units)).all()
    return {unit: await rate_at(session, unit, at_us=at_us, quote=quote) for unit in sorted(names)}


async def known(session: AsyncSession, *, unit: str | None = None, limit: int = 100) -> list[DatedRate]:
    """The newest rates first, of one unit or of all."""
    newest_first = col(Rate.at_us).desc(), col(Rate.unit), col(Rate.quote), col(Rate.word).desc(), col(Rate.source)
    query = select(Rate).order_by(*newest_first).limit(limit)
    if unit is not None:
        query = query.where(col(Rate.unit) == unit)
    return [_dated(row) for row in await session.scalars(query)]


async def _before(session: AsyncSession, rates: Sequence[DatedRate]) -> dict[_Key, Rate]:
    """What is known already of the days that `rates` span."""
    if not rates:
        return {}
    days = [each.at_us for each in rates]
    rows = await session.scalars(select(Rate).where(col(Rate.at_us).between(min(days), max(days))))
    return {(row.unit, row.quote, row.at_us, row.source): row for row in rows}


def _dated(row: Rate) -> DatedRate:
    return DatedRate(row.unit, row.quote, row.at_us, row.source, Decimal(row.rate))


def _check(each: DatedRate) -> None:
    for name in (each.unit, each.quote):
        if not _UNIT(name):
            raise MalformedRate(f"{name!r} is no currency or coin; write its code, such as EUR")
    if each.unit == each.quote:
        raise MalformedRate(f"a rate of {each.unit} to itself is 1 and needs no source")
    if not each.source.strip():
        raise MalformedRate(f"the rate of {each.unit} has no source; say who published it")
    if not each.rate.is_finite() or not _LEAST <= each.rate <= _MOST:
        raise MalformedRate(f"the rate of {each.unit} to {each.quote} is {each.rate}; it must be positive and finite")
