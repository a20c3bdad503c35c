"""The ledger's CSV as an auditor's program would read it: written out here, so that the format is described twice."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from datetime import datetime, timedelta
from decimal import Decimal
from itertools import groupby
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession

from ledger.book import Recorded, entries
from ledger.event import Dims, Event, Line
from ledger.export import COLUMNS, csv_text, rows_of

Row = dict[str, str]
EPOCH = datetime.fromisoformat("1970-01-01T00:00:00Z")


async def written(session: AsyncSession, **selection: Any) -> str:
    """The selected entries (a few; the door for many is `GET /v1/ledger/export.csv`)."""
    kept = await entries(session, limit=1_000, **selection)
    return csv_text([COLUMNS, *(row for entry in kept for row in rows_of(entry))])


def read_csv(text: str) -> Iterator[Recorded]:
    """The entries of an export, exactly as they were."""
    rows = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    for _, group in groupby(rows, key=lambda row: row["seq"]):
        yield _entry(list(group))


def _entry(rows: list[Row]) -> Recorded:
    first = rows[0]
    attempt = _text(first["attempt"])
    event = Event(
        key=_given(first["key"]),
        kind=_given(first["kind"]),  # type: ignore[arg-type]  # compared with the entry that was written
        occurred_at_us=_micros(first["occurred_at"]),
        actor=_given(first["actor"]),
        dims=Dims(
            project=_text(first["project"]),
            batch=_text(first["batch"]),
            rental=_text(first["rental"]),
            offer_key=_text(first["offer_key"]),
            attempt=None if attempt is None else int(attempt),
        ),
        lines=tuple(
            Line(account=_given(row["account"]), nano=int(Decimal(row["amount"]).scaleb(9)), unit=_given(row["unit"]))
            for row in rows
        ),
        corrects=_text(first["corrects"]),
        hold=_text(first["hold"]),
    )
    return Recorded(
        entry_id=_given(first["entry_id"]),
        seq=int(first["seq"]),
        recorded_at_us=_micros(first["recorded_at"]),
        period=first["period"],
        sha256=first["sha256"],
        event=event,
    )


def _text(cell: str) -> str | None:
    return cell.removeprefix("'") if cell else None


def _given(cell: str) -> str:
    assert cell, "an empty cell is null"
    return cell.removeprefix("'")


def _micros(cell: str) -> int:
    return (datetime.fromisoformat(cell) - EPOCH) // timedelta(microseconds=1)
