"""What was invoiced for a month: which invoice a market's charges belong to, and what each invoice charges by category."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from broker.finance.books_read import BookEntry
from broker.finance.tables import InvoiceRow
from ledger.focus.datasets import InvoiceLine
from ledger.tables import Entry, Posting

MATCH = "invoice.match:"  # then the invoice's id and the number of the posting


class Invoiced:
    """Which invoice each entry of a month is on: of a rental the first that was matched after the entry was posted.

    `by_rental` has each rental's invoices as (number in the books of what matched it, the provider's number), in that order.
    """

    def __init__(self, by_rental: Mapping[str, Sequence[tuple[int, str]]], by_id: Mapping[str, str]) -> None:
        self._by_rental = by_rental
        self._by_id = by_id

    def number_of(self, entry: BookEntry) -> str | None:
        """The provider's number of the invoice; None: not invoiced yet."""
        if entry.key.startswith(MATCH):
            return self._by_id.get(entry.key.removeprefix(MATCH).partition(":")[0])
        if entry.rental is None:
            return None
        if (told := self._by_id.get(str(entry.facts.get("invoice")))) is not None:
            return told
        return next((number for seq, number in self._by_rental.get(entry.rental, ()) if entry.seq < seq), None)


async def invoiced_in(session: AsyncSession, period: str) -> Invoiced:
    """Of all invoices for the month."""
    rows = list(await session.scalars(select(InvoiceRow).where(col(InvoiceRow.period) == period)))
    keys = {f"{MATCH}{row.id}:0": row for row in rows}
    query = select(col(Entry.seq), col(Entry.key)).where(col(Entry.key).in_(keys)).order_by(col(Entry.seq))
    by_rental: dict[str, list[tuple[int, str]]] = defaultdict(list)
    for seq, key in (await session.execute(query)).all():
        for rental in json.loads(keys[key].body)["matched"]:
            by_rental[rental].append((seq, keys[key].number))
    return Invoiced(by_rental, {row.id: row.number for row in rows})


async def invoice_lines(session: AsyncSession, period: str) -> list[InvoiceLine]:
    """What each invoice charges, out of the entries that matched it: Usage is what was accrued, Adjustment the rest."""
    rows = list(await session.scalars(select(InvoiceRow).where(col(InvoiceRow.period) == period)))
    found: list[InvoiceLine] = []
    for row in sorted(rows, key=lambda each: (each.provider, each.number)):
        query = (
            select(col(Posting.account), col(Posting.nano))
            .join(Entry, col(Entry.id) == col(Posting.entry_id))
            .where(col(Entry.key).startswith(f"{MATCH}{row.id}:", autoescape=True), col(Posting.unit) == "USD")
        )
        sums: dict[str, int] = defaultdict(int)
        for account, nano in (await session.execute(query)).all():
            if account.startswith("Liabilities:Accrued:"):
                sums["Usage"] += int(nano)
            elif not account.startswith("Liabilities:Payable:"):
                sums["Adjustment"] += int(nano)
        found += [
            InvoiceLine(row.number, row.provider, category, nano, row.imported_us)
            for category, nano in sorted(sums.items())
            if nano
        ]
    return found
