"""An XLSX workbook for people: real numbers (with nine places), the exact decimal as text beside them, no macros, no links.

A spreadsheet keeps 15 digits; the column `exact` holds the last one. Needs XlsxWriter (the extra `xlsx`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

Cell = str | int | Decimal | None


@dataclass(frozen=True, slots=True)
class Sheet:
    """One sheet: Decimal cells become numbers, and get their exact text in a column `<name> exact`."""

    name: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]


def write_workbook(path: Path, sheets: Sequence[Sheet], about: Mapping[str, str]) -> None:
    """Raises ImportError without XlsxWriter."""
    import xlsxwriter  # noqa: PLC0415 - an optional extra

    # Nothing that was typed by somebody may become a formula or a link on the reader's machine.
    options = {"strings_to_formulas": False, "strings_to_urls": False, "strings_to_numbers": False, "in_memory": False}
    with xlsxwriter.Workbook(str(path), options) as book:
        book.set_properties({"title": "broker ledger", "comments": "; ".join(f"{k}: {v}" for k, v in about.items())})
        money, bold = book.add_format({"num_format": "#,##0.000000000"}), book.add_format({"bold": True})
        for sheet in sheets:
            target = book.add_worksheet(sheet.name)
            _head(target, sheet, bold)
            for number, row in enumerate(sheet.rows, start=1):
                _write_row(target, number, row, len(sheet.columns), _money_columns(sheet), money)
            target.freeze_panes(1, 0)


def _money_columns(sheet: Sheet) -> list[int]:
    return [at for at in range(len(sheet.columns)) if any(isinstance(row[at], Decimal) for row in sheet.rows)]


def _head(target: Any, sheet: Sheet, bold: Any) -> None:
    names = [*sheet.columns, *(f"{sheet.columns[at]} exact" for at in _money_columns(sheet))]
    for at, name in enumerate(names):
        target.write_string(0, at, name, bold)
    target.set_column(0, len(names), 22)


def _write_row(target: Any, number: int, row: Sequence[Cell], width: int, exact: Sequence[int], money: Any) -> None:
    write = target
    for at, cell in enumerate(row):
        if isinstance(cell, Decimal):
            write.write_number(number, at, cell, money)
        elif isinstance(cell, int):
            write.write_number(number, at, cell)
        elif cell is not None:
            write.write_string(number, at, cell)
    for offset, at in enumerate(exact):
        write.write_string(number, width + offset, f"{row[at]:f}" if isinstance(row[at], Decimal) else "")
