"""The books as CSV, one row a posting, and back. This file alone knows the format.

Columns are listed by hand: adding a field to the event must not change a published format. Amounts are exact decimal
strings of nine places, times ISO 8601 UTC with microseconds, an empty cell is null. A text that a spreadsheet would
take for a formula gets an apostrophe in front, and so does a text that begins with one: reading back is exact.
"""

from __future__ import annotations

import csv
import io
from collections.abc import AsyncIterator, Iterable, Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal, InvalidOperation
from itertools import groupby
from typing import Any

import msgspec
from sqlalchemy.ext.asyncio import AsyncSession

from ledger.book import Recorded, entries
from ledger.errors import LedgerError
from ledger.event import Dims, Event, Line
from ledger.money import from_nano

COLUMNS = (
    "seq",
    "entry_id",
    "key",
    "kind",
    "occurred_at",
    "recorded_at",
    "period",
    "actor",
    "project",
    "batch",
    "rental",
    "offer_key",
    "attempt",
    "corrects",
    "hold",
    "line",
    "account",
    "unit",
    "amount",
    "sha256",
)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# What Excel, LibreOffice and Sheets evaluate, the full-width forms included (OWASP, "CSV Injection"), and our own mark.
_RISKY = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠", "'")


class BadExport(LedgerError):
    """The file is not an export of the books."""

    code = "bad_export"


async def csv_chunks(
    session: AsyncSession,
    *,
    project: str | None = None,
    batch: str | None = None,
    rental: str | None = None,
    page: int = 500,
) -> AsyncIterator[str]:
    """The selected entries as CSV (RFC 4180): the header first, then `page` entries a chunk; no more are in memory."""
    yield _text([COLUMNS])
    after = 0
    while found := await entries(session, project=project, batch=batch, rental=rental, after_seq=after, limit=page):
        yield _text(row for entry in found for row in rows_of(entry))
        after = found[-1].seq


def rows_of(entry: Recorded) -> Iterator[tuple[str, ...]]:
    """The cells of one entry, a row a posting, in the order of COLUMNS."""
    event, dims = entry.event, entry.event.dims
    for number, line in enumerate(event.lines):
        yield (
            str(entry.seq),
            _cell(entry.entry_id),
            _cell(event.key),
            _cell(event.kind),
            _instant(event.occurred_at_us),
            _instant(entry.recorded_at_us),
            entry.period,
            _cell(event.actor),
            _cell(dims.project),
            _cell(dims.batch),
            _cell(dims.rental),
            _cell(dims.offer_key),
            "" if dims.attempt is None else str(dims.attempt),
            _cell(event.corrects),
            _cell(event.hold),
            str(number),
            _cell(line.account),
            _cell(line.unit),
            f"{from_nano(line.nano):f}",
            entry.sha256,
        )


def read_csv(lines: Iterable[str]) -> Iterator[Recorded]:
    """The entries of an export, exactly as they were. Give it a file opened with `newline=""`.

    Raises BadExport naming row and column.
    """
    reader = csv.reader(lines, strict=True)
    header = next(reader, None)
    if header != list(COLUMNS):
        raise BadExport(f"row 1: the columns are {header}, not {list(COLUMNS)}")
    rows = (
        _Row(number, dict(zip(COLUMNS, cells, strict=False)), len(cells))
        for number, cells in enumerate(reader, start=2)
    )
    for _, group in groupby(rows, key=lambda row: row.integer("seq")):
        yield _entry(list(group))


class _Row:
    """Typed readers of one row's cells; each names row and column when a cell is not what it must be."""

    def __init__(self, number: int, cells: dict[str, str], count: int) -> None:
        self.number = number
        self.cells = cells
        if count != len(COLUMNS):
            raise BadExport(f"row {number} has {count} cells, not {len(COLUMNS)}")

    def optional(self, column: str) -> str | None:
        cell = self.cells[column]
        return cell.removeprefix("'") if cell else None

    def required(self, column: str) -> str:
        value = self.optional(column)
        if value is None:
            raise self._bad(column, "text")
        return value

    def integer(self, column: str) -> int:
        try:
            return int(self.cells[column])
        except ValueError as problem:
            raise self._bad(column, "a whole number") from problem

    def instant(self, column: str) -> int:
        try:
            moment = datetime.strptime(self.cells[column], "%Y-%m-%dT%H:%M:%S.%fZ").replace(tzinfo=UTC)
        except ValueError as problem:
            raise self._bad(column, "a time such as 2026-11-22T10:04:00.000000Z") from problem
        return (moment - _EPOCH) // timedelta(microseconds=1)

    def nano(self, column: str) -> int:
        try:
            nano = Decimal(self.cells[column]).scaleb(9)
        except InvalidOperation as problem:
            raise self._bad(column, "an amount") from problem
        if not nano.is_finite() or nano != int(nano):
            raise self._bad(column, "an amount of whole nano-units")
        return int(nano)

    def _bad(self, column: str, wanted: str) -> BadExport:
        return BadExport(f"row {self.number}, column {column}: {self.cells[column]!r} is not {wanted}")


def _entry(rows: list[_Row]) -> Recorded:
    first = rows[0]
    dims = Dims(
        project=first.optional("project"),
        batch=first.optional("batch"),
        rental=first.optional("rental"),
        offer_key=first.optional("offer_key"),
        attempt=first.integer("attempt") if first.cells["attempt"] else None,
    )
    lines = tuple(
        Line(account=row.required("account"), nano=row.nano("amount"), unit=row.required("unit")) for row in rows
    )
    values: dict[str, Any] = {
        "key": first.required("key"),
        "kind": first.required("kind"),
        "occurred_at_us": first.instant("occurred_at"),
        "actor": first.required("actor"),
        "corrects": first.optional("corrects"),
        "hold": first.optional("hold"),
    }
    try:
        event = msgspec.convert(values | {"dims": dims, "lines": lines}, type=Event)
    except msgspec.ValidationError as problem:
        raise BadExport(f"row {first.number}: {problem}") from problem
    return Recorded(
        entry_id=first.required("entry_id"),
        seq=first.integer("seq"),
        recorded_at_us=first.instant("recorded_at"),
        period=first.required("period"),
        sha256=first.required("sha256"),
        event=event,
    )


def _cell(value: str | None) -> str:
    if value is None:
        return ""
    return f"'{value}" if value.startswith(_RISKY) else value


def _instant(micros: int) -> str:
    return (_EPOCH + timedelta(microseconds=micros)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _text(rows: Iterable[Iterable[str]]) -> str:
    target = io.StringIO(newline="")
    csv.writer(target).writerows(rows)
    return target.getvalue()
