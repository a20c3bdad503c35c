"""The script that recomputes the cost from an export, against the books themselves. It knows nothing of ours."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from broker.database import Database
from ledger import holds
from ledger.accrual import Meter, accrue, read_meter
from ledger.money import from_nano
from tests.support.ledger_csv import written

SCRIPT = Path(__file__).parents[3] / "scripts" / "recompute_cost.py"
START_US = 1_795_305_600_000_000
RENTALS = {"rental_1": (18_000_000, 61), "rental_2": (52_000_001, 7)}  # nano-USD an hour, seconds


@pytest.fixture
async def ledger(database: Database, tmp_path: Path) -> Path:
    """The export of books in which two rentals were held for, accrued twice and ended."""
    async with database.transaction() as session:
        for rental, (price, seconds) in RENTALS.items():
            meter = Meter(rental, f"sandbox/{rental}", "sandbox", "spot", "default", "batch_1", price, START_US)
            where: dict[str, Any] = {"project": "default", "batch": "batch_1", "rental": rental}
            stamp: dict[str, Any] = {"occurred_at_us": START_US, "actor": "broker"}
            await holds.open_hold(session, hold_id=rental, nano=price, offer_key=meter.offer_key, **where, **stamp)
            for until_s, final in ((seconds // 2, False), (seconds, True)):
                until_us = START_US + until_s * 1_000_000
                await accrue(session, meter, until_us=until_us, final=final, actor="broker", recorded_at_us=until_us)
            await holds.void_hold(session, hold_id=rental, **stamp)
    file = tmp_path / "ledger.csv"
    async with database.transaction() as session:
        file.write_text(await written(session))
    return file


def recompute(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-I", str(SCRIPT), *arguments], capture_output=True, text=True, check=False, timeout=60
    )


async def test_the_script_arrives_at_what_the_books_say(ledger: Path, database: Database) -> None:
    async with database.transaction() as session:
        booked = {rental: from_nano((await read_meter(session, rental)).nano) for rental in RENTALS}
    done = recompute(str(ledger))
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["rentals"] == {rental: f"{amount:.9f}" for rental, amount in booked.items()}
    assert found["total_usd"] == f"{sum(booked.values()):.9f}" != "0.000000000"
    assert json.loads(recompute(str(ledger), "--rental", "rental_2").stdout)["total_usd"] == f"{booked['rental_2']:.9f}"


def test_a_cost_that_differs_by_a_nano_dollar_is_refused(ledger: Path) -> None:
    total = json.loads(recompute(str(ledger)).stdout)["total_usd"]
    assert recompute(str(ledger), "--expect", total).returncode == 0
    other = f"{float(total) + 1e-9:.9f}"
    assert recompute(str(ledger), "--expect", other).returncode == 1


def test_an_export_with_a_row_taken_out_does_not_pass(ledger: Path) -> None:
    rows = ledger.read_text().splitlines()
    ledger.write_text("\n".join(row for row in rows if row is not rows[-1]) + "\n")
    done = recompute(str(ledger))
    assert done.returncode == 1
    assert "does not balance" in done.stderr


def test_the_script_imports_pythons_library_alone() -> None:
    imports = [
        node for node in ast.walk(ast.parse(SCRIPT.read_text())) if isinstance(node, ast.Import | ast.ImportFrom)
    ]
    names = {alias.name for node in imports if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in imports if isinstance(node, ast.ImportFrom)}
    assert {name.split(".")[0] for name in names} <= sys.stdlib_module_names
