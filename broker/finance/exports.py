"""Exports of the books: a folder of files with a manifest, made from the entries of a month (or of all).

The database is read page by page; what is computed and written in between runs in a thread, so that the broker goes on
answering. Every format is a projection of the same entries, and the manifest says what they sum to.
"""

from __future__ import annotations

import asyncio
import csv
import importlib.util
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, get_args

from sqlalchemy import select
from sqlmodel import col

from broker.database import Database
from broker.finance import audit_export
from broker.finance.account_maps import newest_map
from broker.finance.books_read import BookEntry, Subjects, charges_of, market_of, pages
from broker.finance.contract_terms import contract_terms
from broker.finance.invoices import invoice_lines, invoiced_in
from ledger import erp, journals, sealed_export
from ledger.book import entries as recorded_entries
from ledger.export import COLUMNS, csv_text, rows_of
from ledger.focus.charge import Charge, Subject
from ledger.focus.datasets import InvoiceLine, as_piece, billing_periods, contract_commitments, invoice_details
from ledger.focus.files import FocusFiles
from ledger.focus.model import Dataset, Version, columns
from ledger.focus.table import BROKER, Mode, header, pieces
from ledger.manifest import write_manifest
from ledger.money import from_nano
from ledger.sealed_export import Signer
from ledger.tables import Entry
from ledger.workbook import Cell, Sheet, write_workbook

Format = Literal["focus-1.4", "focus-1.2", "beancount", "hledger", "erp", "xlsx", "csv", "audit"]
FORMATS: tuple[Format, ...] = get_args(Format)
MODES: tuple[Mode, ...] = get_args(Mode)
MANIFEST_VERSION = 1


class ExportRefused(Exception):
    """This export cannot be made: what is missing and how to mend it."""

    code = "export_refused"


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is exported: `period` None is all of the books (journals, csv and audit only), `project` None all projects."""

    format: Format
    mode: Mode
    period: str | None
    project: str | None
    now_us: int


@dataclass
class _Totals:
    """What the exported rows sum to, nano-USD by market: the manifest's, and what other programs' sums are compared with."""

    billed: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    effective: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    entries: int = 0


async def export(database: Database, wanted: Wanted, folder: Path, signer: Signer | None = None) -> dict[str, Any]:
    """Make the export in `folder` (empty, there) and return its manifest, which `signer` signs.

    The audit packet of the whole books then also holds the sealed streams, and `broker ledger verify` takes it.
    Raises ExportRefused when the format needs a period, a library, or a mapping that is not there.
    """
    about: dict[str, Any] = {
        "object": "ledger.export",
        "manifest_version": MANIFEST_VERSION,
        "format": wanted.format,
        "mode": wanted.mode,
        "period": wanted.period,
        "project": wanted.project,
        "scope": "all" if wanted.period is None and wanted.project is None else "part",
        "made_at_us": wanted.now_us,
    }
    made = await _made(database, wanted, folder)
    if signer is not None and wanted.format == "audit" and wanted.project is None:
        made["sealed_leaves"] = await sealed_export.write(database.transaction, folder)
    manifest = await asyncio.to_thread(write_manifest, folder, {**about, **made})
    if signer is not None:
        await asyncio.to_thread(sealed_export.sign_manifest, folder, signer)
    return manifest


async def _made(database: Database, wanted: Wanted, folder: Path) -> dict[str, Any]:
    return await _WRITERS[wanted.format](database, wanted, folder)


def _month(wanted: Wanted) -> str:
    if wanted.period is None:
        raise ExportRefused(f"format {wanted.format} is of one month; give the period as YYYY-MM")
    return wanted.period


async def _focus(database: Database, wanted: Wanted, folder: Path) -> dict[str, Any]:
    period = _month(wanted)
    version: Version = "1.4" if wanted.format == "focus-1.4" else "1.2"
    has_arrow = importlib.util.find_spec("pyarrow") is not None
    base = folder / f"billing_period={period}"
    base.mkdir()
    name = "cost_and_usage"
    files = FocusFiles(
        header(version),
        csv_path=base / f"{name}.csv",
        parquet_path=base / f"{name}.parquet" if has_arrow else None,
    )
    subjects, totals = Subjects(), _Totals()
    try:
        async for charges in _charges(database, wanted, period, subjects, totals):
            await asyncio.to_thread(_write, files, charges, subjects.all, period, wanted.mode, version)
    finally:
        files.close()
    smaller = await _smaller(database, wanted, period, subjects, base) if version == "1.4" else {}
    return {
        "focus_version": version,
        "rows": files.rows,
        "datasets": ["Cost and Usage", *smaller],
        "dataset_rows": {"Cost and Usage": files.rows, **smaller},
        "parquet": "written" if has_arrow else "not written: pyarrow is not installed (the extra `parquet`)",
        "billed_cost": {market: f"{from_nano(nano):f}" for market, nano in sorted(totals.billed.items())},
        "effective_cost": {market: f"{from_nano(nano):f}" for market, nano in sorted(totals.effective.items())},
        "columns": list(header(version)),
    }


def _write(
    files: FocusFiles, charges: Sequence[Charge], subjects: Sequence[Subject], period: str, mode: Mode, version: Version
) -> None:
    for piece in pieces(charges, subjects, period=period, mode=mode, version=version):
        files.write(piece)


async def _charges(
    database: Database, wanted: Wanted, period: str, subjects: Subjects, totals: _Totals
) -> AsyncIterator[list[Charge]]:
    async with database.transaction() as session:
        invoiced = await invoiced_in(session, period)
    async for page in pages(database, period, project=wanted.project):
        async with database.transaction() as session:
            await subjects.learn(session, page)
        found = []
        for entry in page:
            number = subjects.number(entry)
            subject = subjects.all[number]
            for charge in charges_of(entry, number, subject, invoice=invoiced.number_of(entry)):
                found.append(charge)
                totals.billed[subject.market] += charge.billed_nano
                totals.effective[subject.market] += charge.effective_nano
        totals.entries += len(page)
        if found:
            yield found


async def _smaller(database: Database, wanted: Wanted, period: str, subjects: Subjects, base: Path) -> dict[str, int]:
    """The other datasets. Of the first two a file without rows would be read as damage and is not there; that nothing was
    bought ahead is news, and Contract Commitment says it with its header alone."""
    async with database.transaction() as session:
        # an invoice is of the whole house, whatever a project is charged
        is_house = wanted.project is None and wanted.mode != "chargeback"
        details = await invoice_lines(session, period) if is_house else []
        bought = await contract_terms(session, wanted.mode, project=wanted.project)
        closed_us = await session.scalar(
            select(col(Entry.occurred_at_us)).where(
                col(Entry.kind) == "period.close", col(Entry.key) == f"period.close:{period}"
            )
        )
    issuers = {BROKER} if wanted.mode == "chargeback" else {subject.market for subject in subjects.all}
    made: list[tuple[Dataset, list[Any]]] = [
        ("Billing Period", billing_periods(issuers, period, closed_us=closed_us, now_us=wanted.now_us)),
        ("Invoice Detail", invoice_details(details, period)),
        ("Contract Commitment", contract_commitments(bought, period, now_us=wanted.now_us)),
    ]
    written = [(dataset, rows) for dataset, rows in made if rows or dataset == "Contract Commitment"]
    for dataset, rows in written:
        path = base / f"{dataset.lower().replace(' ', '_')}.csv"
        files = FocusFiles(list(columns(dataset)), csv_path=path, parquet_path=None)
        files.write(as_piece(dataset, rows))
        files.close()
    return {dataset: len(rows) for dataset, rows in written}


async def _journal(database: Database, wanted: Wanted, folder: Path) -> dict[str, Any]:
    kept = [
        entry.as_journal() async for page in pages(database, wanted.period, project=wanted.project) for entry in page
    ]
    write = journals.beancount if wanted.format == "beancount" else journals.hledger
    path = folder / f"broker.{'beancount' if wanted.format == 'beancount' else 'journal'}"
    await asyncio.to_thread(_write_text, path, write(kept))
    sums = journals.balances(kept)
    return {
        "entries": len(kept),
        "balances": {f"{account} {unit}": f"{from_nano(nano):f}" for (account, unit), nano in sorted(sums.items())},
    }


def _write_text(path: Path, parts: Iterable[str]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(parts)


async def _sums(database: Database, wanted: Wanted, period: str | None) -> list[erp.Sum]:
    sums: dict[tuple[str, str, str | None], int] = defaultdict(int)
    async for page in pages(database, period, project=wanted.project):
        for entry in page:
            for account, unit, nano in entry.lines:
                sums[account, unit, entry.project] += nano
    return [
        erp.Sum(account, unit, project, nano)
        for (account, unit, project), nano in sorted(sums.items(), key=lambda each: (each[0][:2], each[0][2] or ""))
    ]


async def _erp(database: Database, wanted: Wanted, folder: Path) -> dict[str, Any]:
    period = _month(wanted)
    async with database.transaction() as session:
        mapping = await newest_map(session)
    if mapping is None:
        raise ExportRefused("there is no account mapping yet; set one with `broker ledger accounts set FILE`")
    version, rules = mapping
    made = erp.journal(await _sums(database, wanted, period), rules, period=period, version=str(version))
    (folder / f"journal-{period}.csv").write_text(csv_text([erp.COLUMNS, *made.rows]), encoding="utf-8", newline="")
    return {"mapping_version": version, "unmapped": list(made.unmapped), "blocks_close": bool(made.unmapped)}


async def _xlsx(database: Database, wanted: Wanted, folder: Path) -> dict[str, Any]:
    if importlib.util.find_spec("xlsxwriter") is None:
        raise ExportRefused("format xlsx needs XlsxWriter; install the extra `xlsx`")
    period = _month(wanted)
    sums = await _sums(database, wanted, period)
    by_project, by_market = await _spent(database, wanted, period)
    details: list[InvoiceLine] = []
    exceptions: list[tuple[str | Decimal | None, ...]] = []
    if wanted.project is None:  # invoices and what they left open are of the whole house
        async with database.transaction() as session:
            details = await invoice_lines(session, period)
            exceptions = await audit_export.exception_rows(session, period)
    whole = sum(by_market.values())
    sheets = [
        Sheet("summary", ("what", "USD"), [("cost of the month", from_nano(whole))]),
        Sheet("by project", ("project", "USD"), _money_rows(by_project)),
        Sheet("by provider", ("provider", "USD"), _money_rows(by_market)),
        Sheet("accounts", ("account", "unit", "project", "balance"),
              [(each.account, each.unit, each.project, from_nano(each.nano)) for each in sums]),
        Sheet("reconciliation", ("invoice", "provider", "category", "USD"),
              [(each.invoice, each.issuer, each.category, from_nano(each.nano)) for each in details]),
        Sheet("exceptions", audit_export.EXCEPTION_COLUMNS, exceptions),
    ]  # fmt: skip
    path = folder / f"ledger-{period}.xlsx"
    await asyncio.to_thread(write_workbook, path, sheets, {"period": period, "project": wanted.project or "all"})
    return {"cost": f"{from_nano(whole):f}", "sheets": [sheet.name for sheet in sheets]}


def _money_rows(sums: dict[str, int]) -> list[tuple[Cell, ...]]:
    return [(name, from_nano(nano)) for name, nano in sorted(sums.items())]


async def _spent(database: Database, wanted: Wanted, period: str) -> tuple[dict[str, int], dict[str, int]]:
    """What was used up, by project and by market."""
    by_project: dict[str, int] = defaultdict(int)
    by_market: dict[str, int] = defaultdict(int)
    async for page in pages(database, period, project=wanted.project):
        for entry in page:
            nano = used_up(entry)
            if nano:
                by_project[entry.project or "-"] += nano
                by_market[market_of(entry)] += nano
    return by_project, by_market


def used_up(entry: BookEntry) -> int:
    """Nano-USD that the entry moves through expenses, refunds taken off."""
    return sum(
        nano
        for account, unit, nano in entry.lines
        if unit == "USD" and account.startswith(("Expenses:", "Income:Refunds:"))
    )


async def _csv(database: Database, wanted: Wanted, folder: Path) -> dict[str, Any]:
    path, after, rows = folder / "postings.csv", 0, 0
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        while True:
            async with database.transaction() as session:
                page = await recorded_entries(session, project=wanted.project, after_seq=after, limit=1_000)
            if not page:
                break
            after = page[-1].seq
            lines = [row for each in page if wanted.period in (None, each.period) for row in rows_of(each)]
            writer.writerows(lines)
            rows += len(lines)
    return {"rows": rows}


async def _audit(database: Database, wanted: Wanted, folder: Path) -> dict[str, Any]:
    return await audit_export.write(database, folder, period=wanted.period, project=wanted.project)


_WRITERS: Mapping[Format, Callable[[Database, Wanted, Path], Awaitable[dict[str, Any]]]] = MappingProxyType(
    {
        "focus-1.4": _focus,
        "focus-1.2": _focus,
        "beancount": _journal,
        "hledger": _journal,
        "erp": _erp,
        "xlsx": _xlsx,
        "csv": _csv,
        "audit": _audit,
    }
)
