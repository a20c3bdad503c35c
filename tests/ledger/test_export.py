"""The CSV: exact, safe to open, readable without us."""

from __future__ import annotations

import csv
import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.database import Database
from ledger import holds
from ledger.accrual import Meter, accrue
from ledger.book import Recorded, entries, entry_id_of, post
from ledger.event import Dims, Event, Line
from ledger.export import COLUMNS, csv_text, rows_of
from ledger.rules import period_of
from tests.support.ledger_csv import read_csv, written

NOW = 1_795_305_600_000_000

# An auditor's script: the standard library and the file, nothing of ours.
RECOMPUTE = """
import csv, sys
from decimal import Decimal
batch, cost, balance = sys.argv[2], Decimal(0), Decimal(0)
with open(sys.argv[1], newline="") as file:
    for row in csv.DictReader(file):
        balance += Decimal(row["amount"])
        if row["batch"] == batch and row["account"].startswith("Expenses:"):
            cost += Decimal(row["amount"])
print(cost, balance == 0)
"""


async def export(books: Database, **selection: Any) -> str:
    async with books.transaction() as session:
        return await written(session, **selection)


def meter(batch: str) -> Meter:
    return Meter(
        rental=f"rental_{batch}",
        offer_key="sandbox/eu/-/a/cpu/0/spot",
        market="sandbox",
        pricing="spot",
        project="demo",
        batch=batch,
        price_nano_hour=123_456_789,
        started_us=NOW,
    )


async def test_a_script_that_imports_nothing_of_ours_recomputes_a_batchs_cost(books: Database, tmp_path: Path) -> None:
    async with books.transaction() as session:
        for batch, seconds in (("batch_1", 1_000), ("batch_2", 77), ("batch_1", 1_234)):
            until = NOW + seconds * 1_000_000
            await accrue(session, meter(batch), until_us=until, final=False, actor="broker", recorded_at_us=until)
        # the provider's final meter is lower: a correction, which the script must count as well
        await accrue(session, meter("batch_1"), until_us=NOW + 10**9, final=True, actor="broker", recorded_at_us=NOW)
    file, script = tmp_path / "ledger.csv", tmp_path / "recompute.py"
    file.write_text(await export(books), newline="")
    script.write_text(RECOMPUTE)
    run = subprocess.run(  # noqa: ASYNC221 - nothing else runs in this test
        [sys.executable, "-I", str(script), str(file), "batch_1"], capture_output=True, text=True, check=True
    )
    assert run.stdout.split() == ["0.034293552", "True"]  # 0.123456789 $/h × 1,000 s / 3,600, half to even


async def test_reading_back_gives_the_same_entries(books: Database) -> None:
    async with books.transaction() as session:
        for number in range(8):
            await post(
                session, usage(f"usage-{number}", Dims(batch=f"batch_{number % 2}")), recorded_at_us=NOW + number
            )
        kept = await entries(session)
    text = await export(books)
    assert list(read_csv(text)) == kept
    assert len(text.splitlines()) == 1 + 2 * 8
    only = await export(books, batch="batch_1")
    assert [entry.seq for entry in read_csv(only)] == [e.seq for e in kept if e.seq % 2 == 0]


def usage(key: str, dims: Dims, nano: int = 5) -> Event:
    return Event(
        key=key,
        kind="usage.accrue",
        occurred_at_us=NOW,
        actor="broker",
        dims=dims,
        lines=(
            Line(account="Expenses:Compute:Spot:Sandbox", nano=nano),
            Line(account="Liabilities:Accrued:Sandbox", nano=-nano),
        ),
    )


async def test_the_columns_are_the_published_ones_and_amounts_are_exact_decimals(books: Database) -> None:
    async with books.transaction() as session:
        await holds.open_hold(
            session,
            hold_id="h1",
            nano=1_500_000_000,
            project="demo",
            batch=None,
            rental="rental_1",
            offer_key=None,
            occurred_at_us=NOW + 1,
            actor="broker",
        )
    rows = list(csv.reader(io.StringIO(await export(books), newline="")))
    assert tuple(rows[0]) == COLUMNS == (
        "seq", "entry_id", "key", "kind", "occurred_at", "recorded_at", "period", "actor", "project", "batch", "rental",
        "offer_key", "attempt", "corrects", "hold", "line", "account", "unit", "amount", "sha256",
    )  # fmt: skip
    first = dict(zip(rows[0], rows[1], strict=True))
    assert (first["amount"], first["occurred_at"], first["batch"]) == ("1.500000000", "2026-11-22T00:00:00.000001Z", "")
    assert dict(zip(rows[0], rows[2], strict=True))["amount"] == "-1.500000000"


async def test_one_nano_is_not_written_in_scientific_notation(books: Database) -> None:
    async with books.transaction() as session:
        await post(session, usage("k", Dims(), nano=1), recorded_at_us=NOW)
    assert ",0.000000001," in await export(books)


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "＝1", "=cmd|' /C calc'!A0", "'=1", "'plain"])
async def test_no_cell_is_a_formula_and_reading_back_is_exact(books: Database, text: str) -> None:
    """A spreadsheet evaluates what begins with = + - @; custom names would run on finance's machines."""
    async with books.transaction() as session:
        await post(
            session, usage(text, Dims(project=text, batch=text, rental=text, offer_key=text)), recorded_at_us=NOW
        )
        kept = await entries(session)
    exported = await export(books)
    for row in csv.DictReader(io.StringIO(exported, newline="")):
        assert {row[column] for column in ("key", "project", "batch", "rental", "offer_key")} == {f"'{text}"}
    assert list(read_csv(exported)) == kept


PRINTABLE = st.text(min_size=1, max_size=20).filter(str.isprintable) | st.sampled_from(
    ["'", "''", '"', ",", 'a,"b', "=", " "]
)
IDS = st.none() | PRINTABLE
EVENTS = st.builds(
    Event,
    key=PRINTABLE,
    kind=st.sampled_from(["usage.accrue", "correction", "hold.open"]),
    occurred_at_us=st.integers(0, 4 * 10**15),
    actor=PRINTABLE,
    dims=st.builds(Dims, project=IDS, batch=IDS, rental=IDS, offer_key=IDS, attempt=st.none() | st.integers(-3, 10**9)),
    lines=st.lists(
        st.builds(Line, account=PRINTABLE, nano=st.integers(-(2**63) + 1, 2**63 - 1), unit=PRINTABLE),
        min_size=1,
        max_size=4,
    ).map(tuple),
    corrects=IDS,
    hold=IDS,
)


@settings(deadline=None)
@given(st.lists(EVENTS, max_size=6))
def test_rows_read_back_to_the_same_entries_whatever_they_hold(events: list[Event]) -> None:
    kept = [
        Recorded(
            entry_id=entry_id_of(event.key, NOW),
            seq=seq,
            recorded_at_us=NOW + seq,
            period=period_of(event.occurred_at_us),
            sha256="0" * 64,
            event=event,
        )
        for seq, event in enumerate(events, start=1)
    ]
    text = csv_text([COLUMNS, *(row for entry in kept for row in rows_of(entry))])
    assert list(read_csv(text)) == kept
