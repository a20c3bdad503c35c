"""What of the price book is asked for, in words that the database understands."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from sqlalchemy import ColumnElement, SQLColumnExpression, func, select, union_all
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from markets.tables import OfferRow

# Of more devices a statement that merges them is longer than the search it saves.
_MOST_MERGED = 24


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Filters; all that are given must hold. `gpu` is the beginning of an accelerator's name, `accelerators` are whole names.

    A country counts with evidence only: the book has it of no other offer.
    """

    market: str | None = None
    gpu: str | None = None
    accelerators: Collection[str] | None = None
    pricing: str | None = None
    country: str | None = None
    least_count: int | None = None


async def conditions(session: AsyncSession, wanted: Wanted) -> list[ColumnElement[bool]]:
    """What rows must fulfil. The names that begin so are looked up first: by a list of names the index finds them, by the
    beginning of a name no index that every database has."""
    market = [] if wanted.market is None else [col(OfferRow.market) == wanted.market]
    names = await _names(session, wanted)
    return [*market, *_among(col(OfferRow.accelerator), names), *_other_conditions(wanted)]


async def cheapest_rows(
    session: AsyncSession, wanted: Wanted, *choosable: ColumnElement[bool], limit: int
) -> Sequence[OfferRow]:
    """The first few wanted and `choosable` rows by the price of the whole machine, of one price by key.

    The first of each device come from its index in the order of their prices and are merged: asked for several devices at once
    SQLite reads every row that they have (15 ms of CPU for what begins with `h100` in a book of 100,000; so 1 to 3).
    """
    price, key, accelerator = col(OfferRow.price_nano_hour), col(OfferRow.key), col(OfferRow.accelerator)
    names = await _names(session, wanted)
    rules = [*_other_conditions(wanted), *choosable]
    if wanted.market is not None:
        # Not by the index of the markets: SQLite would go through all that the market has.
        rules.append(func.coalesce(col(OfferRow.market), "") == wanted.market)
    if names is None or len(names) > _MOST_MERGED:
        # Not by the index of the devices either: of so many, the next in price is soon one.
        first = select(OfferRow).where(*_among(func.coalesce(accelerator, ""), names), *rules)
    else:
        of_each = [
            select(key).where(accelerator == name, *rules).order_by(price, key).limit(limit).subquery()
            for name in names
        ]
        if not of_each:
            return []
        first = select(OfferRow).where(key.in_(union_all(*(select(each.c.key) for each in of_each))))
    return (await session.scalars(first.order_by(price, key).limit(limit))).all()


async def _names(session: AsyncSession, wanted: Wanted) -> list[str] | None:
    """The accelerators that are wanted; None: any."""
    names = wanted.accelerators
    if wanted.gpu is not None:
        begin_so = {name for name in await accelerators(session) if name.startswith(wanted.gpu)}
        names = begin_so if names is None else begin_so & set(names)
    return None if names is None else sorted(names)


async def accelerators(session: AsyncSession) -> list[str]:
    """The names that the book has. From one to the next by the index: DISTINCT looks at 100,000 entries (3 ms)."""
    name = col(OfferRow.accelerator)
    steps = select(func.min(name).label("name")).cte(recursive=True)
    following = select(func.min(name)).where(name > steps.c.name).scalar_subquery()
    steps = steps.union_all(select(following).where(steps.c.name.is_not(None)))
    return list(await session.scalars(select(steps.c.name).where(steps.c.name.is_not(None))))


def _among(accelerator: SQLColumnExpression[str], names: Sequence[str] | None) -> list[ColumnElement[bool]]:
    return [] if names is None else [accelerator.in_(names)]


def _other_conditions(wanted: Wanted) -> Iterator[ColumnElement[bool]]:
    if wanted.pricing is not None:
        yield col(OfferRow.pricing) == wanted.pricing
    if wanted.country is not None:
        yield col(OfferRow.country) == wanted.country
    if wanted.least_count is not None:
        yield col(OfferRow.gpu_count) >= wanted.least_count
