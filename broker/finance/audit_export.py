"""The audit packet: the stored bytes of the books, what stands behind them, and a program that checks them without us."""

from __future__ import annotations

import csv
from collections.abc import AsyncIterator, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from broker.database import Database
from broker.finance.tables import InvoiceException, InvoiceRow
from ledger.book import Recorded, entries
from ledger.export import safe_cell
from ledger.money import from_nano
from ledger.packet import CHECK, README
from ledger.tables import Entry
from markets.tables import RentalRow

PAGE = 1_000
EXCEPTION_COLUMNS = (
    "invoice", "provider", "subject", "code", "USD", "explanation", "state", "decided_by", "decision",
)  # fmt: skip


async def write(database: Database, folder: Path, *, period: str | None, project: str | None) -> dict[str, Any]:
    """Write the packet's files; what the manifest says of them."""
    count = 0
    with (
        (folder / "entries.jsonl").open("wb") as bodies,
        (folder / "entries.csv").open("w", newline="", encoding="utf-8") as head_file,
        (folder / "postings.csv").open("w", newline="", encoding="utf-8") as posting_file,
    ):
        heads, postings = csv.writer(head_file), csv.writer(posting_file)
        heads.writerow(("seq", "id", "recorded_at_us", "sha256"))
        postings.writerow(("seq", "line", "account", "unit", "amount"))
        async for page in _pages(database, period, project):
            for each, payload in page:
                bodies.write(payload + b"\n")
                heads.writerow((each.seq, each.entry_id, each.recorded_at_us, each.sha256))
                postings.writerows(
                    (each.seq, number, line.account, line.unit, f"{from_nano(line.nano):f}")
                    for number, line in enumerate(each.event.lines)
                )
                count += 1
    async with database.transaction() as session:
        await _rentals(session, folder, project)
        if project is None:
            await _invoices(session, folder, period)
    (folder / "README.md").write_text(README, encoding="utf-8")
    (folder / "check.py").write_text(CHECK, encoding="utf-8")
    return {"entries": count}


async def _pages(
    database: Database, period: str | None, project: str | None
) -> AsyncIterator[list[tuple[Recorded, bytes]]]:
    after = 0
    while True:
        async with database.transaction() as session:
            page = await entries(session, project=project, after_seq=after, limit=PAGE)
            if not page:
                return
            query = select(col(Entry.seq), col(Entry.payload)).where(
                col(Entry.seq) >= page[0].seq, col(Entry.seq) <= page[-1].seq
            )
            payloads = {row.seq: row.payload for row in (await session.execute(query)).all()}
        after = page[-1].seq
        yield [(each, payloads[each.seq]) for each in page if period in (None, each.period)]


async def _rentals(session: AsyncSession, folder: Path, project: str | None) -> None:
    names = ("id", "market", "offer_key", "project", "pricing", "price_nano_hour", "granularity_s", "minimum_s",
             "started_us", "ended_us", "end_reason")  # fmt: skip
    query = select(RentalRow).order_by(col(RentalRow.created_us), col(RentalRow.id))
    if project is not None:
        query = query.where(col(RentalRow.project) == project)
    rows = [[getattr(row, name) for name in names] for row in await session.scalars(query)]
    _write(folder / "rentals.csv", names, rows)


async def _invoices(session: AsyncSession, folder: Path, period: str | None) -> None:
    names = (
        "id",
        "provider",
        "number",
        "period",
        "sha256",
        "form",
        "currency",
        "total_nano",
        "imported_us",
        "imported_by",
    )
    query = select(InvoiceRow).order_by(col(InvoiceRow.imported_us))
    if period is not None:
        query = query.where(col(InvoiceRow.period) == period)
    rows = [[getattr(row, name) for name in names] for row in await session.scalars(query)]
    _write(folder / "invoices.csv", names, rows)
    _write(folder / "exceptions.csv", EXCEPTION_COLUMNS, await exception_rows(session, period))


async def exception_rows(session: AsyncSession, period: str | None) -> list[tuple[str | Decimal | None, ...]]:
    """What invoices left unexplained and who decided what, in the order of EXCEPTION_COLUMNS."""
    query = select(InvoiceException, InvoiceRow).join(InvoiceRow, col(InvoiceRow.id) == col(InvoiceException.invoice))
    if period is not None:
        query = query.where(col(InvoiceRow.period) == period)
    rows = (await session.execute(query.order_by(col(InvoiceException.id)))).all()
    return [
        (invoice.number, each.provider, each.subject, each.code, from_nano(each.nano), each.explanation, each.state,
         each.decided_by, each.decision)
        for each, invoice in rows
    ]  # fmt: skip


def _write(path: Path, names: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(names)
        writer.writerows([_cell(cell) for cell in row] for row in rows)


def _cell(cell: Any) -> str:
    if isinstance(cell, Decimal):
        return f"{cell:f}"
    return safe_cell(None if cell is None else str(cell)) if isinstance(cell, str) or cell is None else str(cell)
