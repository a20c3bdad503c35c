"""Finance's commands against a real broker that really spent: what they say is the books', and slips are told."""

from __future__ import annotations

import csv
import io
import json
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import pytest

from ledger.manifest import check_manifest
from tests.support.command_line import prompts, quick, submit, until


@pytest.fixture
def spent(data: Path, tmp_path: Path) -> Path:
    """A broker that has booked something: the accrual loop is a moment behind the answers."""
    assert submit(data, prompts(tmp_path, "one", "two"))[0] == 0
    until(
        lambda: Decimal(str(told("spend", data=data)["usd"])) > 0, "something is booked for the machine that answered"
    )
    return data


def month() -> str:
    return datetime.now(UTC).strftime("%Y-%m")


def told(*arguments: str, data: Path) -> dict[str, object]:
    done = quick(*arguments, "--data", str(data), "--json")
    assert done.returncode == 0, done.stderr
    found: dict[str, object] = json.loads(done.stdout)
    return found


def test_the_books_go_out_in_every_format_and_come_back_as_an_invoice(spent: Path, tmp_path: Path) -> None:
    manifests = {}
    for form in ("focus-1.4", "focus-1.2", "beancount", "hledger", "csv", "audit"):
        out = tmp_path / form
        manifests[form] = told("ledger", "export", "--format", form, "--period", month(), "--out", str(out), data=spent)
        assert check_manifest(out) == [], form
    again = quick("ledger", "export", "--format", "csv", "--out", str(tmp_path / "csv"), "--data", str(spent))
    assert again.returncode == 2 and "never mixed" in again.stderr
    key = tmp_path / "books.pub"
    key.write_text(quick("ledger", "key", "--data", str(spent)).stdout)
    verified = quick("ledger", "verify", str(tmp_path / "audit"), "--public-key", str(key))
    assert verified.returncode == 0, verified.stdout + verified.stderr
    # what a provider was paid, as its own invoice would have it
    path = tmp_path / "focus-1.4" / f"billing_period={month()}" / "cost_and_usage.csv"
    every = list(csv.DictReader(io.StringIO(path.read_text())))
    provider = every[0]["ServiceProviderName"]
    rows = [row for row in every if row["ServiceProviderName"] == provider]
    bill = tmp_path / "bill.csv"
    with bill.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    trial = quick(
        "ledger", "reconcile", "--provider", provider, "--invoice", str(bill), "--trial", "--data", str(spent)
    )
    assert trial.returncode == 0, trial.stderr
    assert "rentals matched" in trial.stdout
    missing = quick("ledger", "reconcile", "--provider", "sandbox", "--invoice", "none.csv", "--data", str(spent))
    assert missing.returncode == 2 and "none.csv cannot be read" in missing.stderr


def test_spend_and_reports_sum_to_the_books(spent: Path, tmp_path: Path) -> None:
    found = told("spend", "--by", "project,provider", data=spent)
    rows = found["data"]
    assert isinstance(rows, list) and sum(Decimal(row["usd"]) for row in rows) == Decimal(str(found["usd"])) > 0
    shown = quick("spend", "--by", "model", "--data", str(spent))
    assert shown.returncode == 0 and "in all $" in shown.stdout
    refused = quick("spend", "--by", "prompt", "--data", str(spent))
    assert refused.returncode == 1 and "tag:NAME" in refused.stderr
    weekly = quick("reports", "weekly", "--data", str(spent))
    assert weekly.returncode == 0 and "Movers" in weekly.stdout
    page = tmp_path / "statement.html"
    written = quick(
        "reports", "chargeback", "--period", month(), "--format", "html", "-o", str(page), "--data", str(spent)
    )
    assert written.returncode == 0 and page.read_text().startswith("<!doctype html>")
    held = quick("reports", "positions", "--at", f"{month()}-01", "--data", str(spent))
    assert held.returncode == 0 and "unrealised gain USD" in held.stdout
    assert quick("ledger", "anomalies", "list", "--data", str(spent)).returncode == 0
    assert quick("ledger", "exceptions", "list", "--data", str(spent)).returncode == 0


def test_the_account_mapping_is_set_and_used(spent: Path, tmp_path: Path) -> None:
    mapping, out = tmp_path / "accounts.json", tmp_path / "erp"
    mapping.write_text('{"suspense": "9999", "rounding": "6999", "rules": [{"account": "Expenses:*", "gl": "6100"}]}')
    assert quick("ledger", "accounts", "set", str(mapping), "--data", str(spent)).returncode == 0
    assert "6100" in quick("ledger", "accounts", "show", "--data", str(spent)).stdout
    blocked = quick("ledger", "export", "--format", "erp", "--period", month(), "--out", str(out), "--data", str(spent))
    assert blocked.returncode == 1 and "blocks the close: Liabilities:Accrued" in blocked.stdout
    mapping.write_text("{")
    assert quick("ledger", "accounts", "set", str(mapping), "--data", str(spent)).returncode == 2


def test_a_decision_is_asked_by_a_file(data: Path, tmp_path: Path) -> None:
    asked = tmp_path / "host.json"
    asked.write_text(
        json.dumps({"price_per_hour": "2", "tokens_per_s": "2500", "utilisation": "0.6", "api_per_million": "0.5",
                    "millions_per_month": "1000"})
    )  # fmt: skip
    shown = quick("decide", "hosting", str(asked), "--data", str(data))
    assert (
        shown.returncode == 0 and "input\tutilisation\t0.6" in shown.stdout and "answer\tchoice\thost" in shown.stdout
    )


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["ledger", "export", "--format", "focus-9"], "--format 'focus-9'"),
        (["ledger", "export", "--format", "csv"], "--out DIR"),
        (["ledger", "export", "--format", "csv", "--mode", "both", "--out", "x"], "--mode 'both'"),
        (["ledger", "reconcile", "--provider", "aws", "--invoice", "x", "--format", "pdf"], "--format 'pdf'"),
        (["reports", "weekly", "--format", "pdf"], "--format 'pdf'"),
        (["decide", "hosting", "none.json"], "none.json cannot be read"),
    ],
)
def test_a_slip_is_told_before_a_broker_is_asked(tmp_path: Path, arguments: list[str], says: str) -> None:
    done = quick(*arguments, "--data", str(tmp_path / "none"))
    assert done.returncode == 2 and says in done.stderr
    assert not (tmp_path / "none").exists()
