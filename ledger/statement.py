"""The statement: what `broker ledger show` prints. Entries with their postings, and the totals of the selection."""

from __future__ import annotations

from typing import Literal

import msgspec
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from ledger.book import Balance, Recorded, balances, entries, selection
from ledger.tables import Entry, Posting

Dimension = Literal["project", "batch", "rental", "offer_key", "period"]
DIMENSIONS: tuple[Dimension, ...] = ("project", "batch", "rental", "offer_key", "period")

_COLUMNS = {
    "project": Entry.project,
    "batch": Entry.batch,
    "rental": Entry.rental,
    "offer_key": Entry.offer_key,
    "period": Entry.period,
}


class Total(msgspec.Struct, frozen=True, kw_only=True):
    """Expenses of one project, batch, rental, offer or month; `name` None: entries that name none."""

    name: str | None
    unit: str
    nano: int


class Statement(msgspec.Struct, frozen=True, kw_only=True):
    """A page of entries and the sums of everything selected, not of the page alone.

    `next_after_seq` starts the next page; None when this was the last.
    """

    entries: tuple[Recorded, ...]
    accounts: tuple[Balance, ...]
    totals: dict[Dimension, tuple[Total, ...]]
    next_after_seq: int | None


async def statement(
    session: AsyncSession,
    *,
    project: str | None = None,
    batch: str | None = None,
    rental: str | None = None,
    after_seq: int = 0,
    limit: int = 1000,
) -> Statement:
    """What the books say of a project, a batch or a rental; of everything when none is named."""
    page = await entries(session, project=project, batch=batch, rental=rental, after_seq=after_seq, limit=limit + 1)
    return Statement(
        entries=tuple(page[:limit]),
        accounts=tuple(await balances(session, project=project, batch=batch, rental=rental)),
        totals={
            by: tuple(await totals(session, by=by, project=project, batch=batch, rental=rental)) for by in DIMENSIONS
        },
        next_after_seq=page[limit - 1].seq if len(page) > limit else None,
    )


async def totals(
    session: AsyncSession,
    *,
    by: Dimension,
    project: str | None = None,
    batch: str | None = None,
    rental: str | None = None,
) -> list[Total]:
    """Expenses (corrections included) per value of a dimension, by name."""
    dimension = col(_COLUMNS[by])
    sums = (
        select(dimension, col(Posting.unit), func.sum(col(Posting.nano)))
        .join(Entry, col(Entry.id) == col(Posting.entry_id))
        .where(col(Posting.account).startswith("Expenses:", autoescape=True))
        .where(*selection(project=project, batch=batch, rental=rental))
        .group_by(dimension, col(Posting.unit))
        .order_by(dimension, col(Posting.unit))
    )
    return [Total(name=name, unit=unit, nano=int(nano)) for name, unit, nano in (await session.execute(sums)).all()]
