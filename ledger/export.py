"""The books as CSV, one row a posting. Of the product, this file alone knows the format.

Columns are listed by hand: adding a field to the event must not change a published format. Amounts are exact decimal
strings of nine places, times ISO 8601 UTC with microseconds, an empty cell is null. A text that a spreadsheet would
take for a formula gets an apostrophe in front, and so does a text that begins with one: reading back is exact.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta

from ledger.book import Recorded
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


def rows_of(entry: Recorded) -> Iterator[tuple[str, ...]]:
    """The cells of one entry, a row a posting, in the order of COLUMNS."""
    event, dims = entry.event, entry.event.dims
    for number, line in enumerate(event.lines):
        yield (
            str(entry.seq),
            safe_cell(entry.entry_id),
            safe_cell(event.key),
            safe_cell(event.kind),
            _instant(event.occurred_at_us),
            _instant(entry.recorded_at_us),
            entry.period,
            safe_cell(event.actor),
            safe_cell(dims.project),
            safe_cell(dims.batch),
            safe_cell(dims.rental),
            safe_cell(dims.offer_key),
            "" if dims.attempt is None else str(dims.attempt),
            safe_cell(event.corrects),
            safe_cell(event.hold),
            str(number),
            safe_cell(line.account),
            safe_cell(line.unit),
            f"{from_nano(line.nano):f}",
            entry.sha256,
        )


def csv_text(rows: Iterable[Iterable[str]]) -> str:
    """The rows as CSV (RFC 4180)."""
    target = io.StringIO(newline="")
    csv.writer(target).writerows(rows)
    return target.getvalue()


def safe_cell(value: str | None) -> str:
    """A text that no spreadsheet takes for a formula; an empty cell is null.

    >>> safe_cell("=1+1"), safe_cell("plain"), safe_cell(None)
    ("'=1+1", 'plain', '')
    """
    if value is None:
        return ""
    return f"'{value}" if value.startswith(_RISKY) else value


def _instant(micros: int) -> str:
    return (_EPOCH + timedelta(microseconds=micros)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
