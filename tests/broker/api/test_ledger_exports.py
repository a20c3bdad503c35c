"""Exports over HTTP: every format is the same books, to the last digit, and can be shown to be what was exported."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
import zipfile
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from ledger.book import post_many
from ledger.checkpoint import read_keys
from ledger.focus.check import check_header, check_rows
from ledger.focus.model import columns
from ledger.manifest import check_manifest
from ledger.verify import verify
from markets.tables import RentalRow
from tests.support.month_of_books import HOUR, PERIOD, START, book_month, other_events

EXAMPLES = Path(__file__).parents[3] / "docs" / "examples"
MAPPING = {
    "suspense": "9999",
    "rounding": "6999",
    "rules": [
        {"account": "Expenses:Compute:*", "gl": "6100", "project": "search", "cost_centre": "CC-1"},
        {"account": "Expenses:*", "gl": "6200"},
        {"account": "Liabilities:*", "gl": "2100"},
    ],
}


@pytest.fixture
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("export")


@pytest.fixture
async def booked(server: Any) -> Any:
    await book_month(server.services.database)
    return server


async def unpacked(server: Any, folder: Path, **query: str) -> dict[str, Any]:
    asked = "&".join(f"{name}={value}" for name, value in query.items())
    answer = await server.call("GET", f"/v1/ledger/exports?{asked}")
    assert answer.status == 200, answer.raw
    with zipfile.ZipFile(io.BytesIO(answer.raw)) as archive:
        archive.extractall(folder)
    assert check_manifest(folder) == []
    manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_text())
    return manifest


async def expenses(server: Any) -> Decimal:
    books = (await server.call("GET", "/v1/ledger/entries?limit=1")).json
    return Decimal(books["accrued_usd"])


def rows_of(folder: Path, name: str = "cost_and_usage") -> list[dict[str, str]]:
    path = folder / f"billing_period={PERIOD}" / f"{name}.csv"
    return list(csv.DictReader(io.StringIO(path.read_text())))


@pytest.mark.parametrize("form", ["focus-1.4", "focus-1.2"])
@pytest.mark.parametrize("mode", ["passthrough", "chargeback"])
async def test_focus_sums_to_the_books_to_the_last_digit(booked: Any, out: Path, form: str, mode: str) -> None:
    manifest = await unpacked(booked, out, format=form, mode=mode, period=PERIOD)
    rows = rows_of(out)
    whole = await expenses(booked)
    assert sum(Decimal(row["BilledCost"]) for row in rows) == whole
    assert sum(Decimal(row["EffectiveCost"]) for row in rows) == whole
    assert sum(Decimal(amount) for amount in manifest["billed_cost"].values()) == whole
    for row in rows:
        product = Decimal(row["ListUnitPrice"]) * Decimal(row["PricingQuantity"])
        assert abs(product - Decimal(row["ListCost"])) < Decimal("1e-9")
    issuers = {row["InvoiceIssuerName"] for row in rows}
    assert issuers == ({"broker"} if mode == "chargeback" else {"aws", "sandbox", "vast.ai", "local"})


@pytest.mark.parametrize("form", ["focus-1.4", "focus-1.2"])
async def test_a_spot_machines_list_price_is_the_on_demand_one_of_its_decision_and_shows_what_was_saved(
    booked: Any, out: Path, form: str
) -> None:
    known = {
        "rental_a": {"on_demand_nano_hour": 40 * 10**9},  # spot, and the same machine's price on demand
        "rental_c": {"on_demand_nano_hour": 10**9, "on_demand_elsewhere": True},  # a bid; known of others alone
        "rental_b": {"on_demand_nano_hour": 9 * 10**9},  # it is on demand: what was charged is the list price
    }
    async with booked.services.database.transaction() as session:
        for rental, price in known.items():
            row = await session.get_one(RentalRow, rental)
            row.purpose = {**row.purpose, **price}
        await post_many(session, [(event, START + 40 * 24 * HOUR) for event in other_events()])
    await unpacked(booked, out, format=form, period=PERIOD)
    rows = [{name: cell or None for name, cell in row.items()} for row in rows_of(out)]
    own = [row for row in rows if row["x_RentalId"] == "rental_a" and row["x_EventKind"] == "usage.accrue"]
    assert {row["ListUnitPrice"] for row in own} == {row["PricingCurrencyListUnitPrice"] for row in own} == {"40.0"}
    assert {row["ContractedUnitPrice"] for row in own} == {"12.345678901"}
    saved = sum(Decimal(row["ListCost"] or 0) - Decimal(row["EffectiveCost"] or 0) for row in own)
    booked_saving = 40 * 10**9 * 10_000 // 3_600 - sum(int(Decimal(row["BilledCost"] or 0) * 10**9) for row in own)
    assert abs(saved - Decimal(booked_saving).scaleb(-9)) < Decimal("1e-8"), "what settlement books as the saving"
    for row in rows:
        if row["x_RentalId"] in ("rental_b", "rental_c"):
            assert row["ListUnitPrice"] == row["ContractedUnitPrice"]
    if form == "focus-1.4":
        assert check_rows(rows) == []


@pytest.mark.parametrize("mode", ["passthrough", "chargeback"])
async def test_what_was_bought_ahead_is_in_contract_commitment_and_its_cost_is_the_books(
    booked: Any, out: Path, mode: str
) -> None:
    async with booked.services.database.transaction() as session:
        await post_many(session, [(event, START + 40 * 24 * HOUR) for event in other_events()])
    manifest = await unpacked(booked, out, format="focus-1.4", mode=mode, period=PERIOD)
    [row] = [{name: cell or None for name, cell in row.items()} for row in rows_of(out, "contract_commitment")]
    assert check_rows([row], "Contract Commitment") == []
    provider = "lambda" if mode == "passthrough" else "broker"
    assert (row["ContractCommitmentId"], row["ContractCommitmentQuantity"]) == ("rsv-1", "24.0")
    assert (row["InvoiceIssuerName"], row["ContractCommitmentDurationType"]) == (provider, "1 Day")
    [bought] = [row for row in rows_of(out) if row["ChargeCategory"] == "Purchase"]
    assert row["ContractCommitmentCost"] == bought["BilledCost"] == "48.0"
    assert bought["CommitmentDiscountId"] == row["ContractCommitmentId"]
    assert manifest["dataset_rows"]["Contract Commitment"] == 1
    assert f"billing_period={PERIOD}/contract_commitment.csv" in json.dumps(manifest["files"])


async def test_where_nothing_was_bought_ahead_contract_commitment_is_its_header(booked: Any, out: Path) -> None:
    manifest = await unpacked(booked, out, format="focus-1.4", period=PERIOD)
    text = (out / f"billing_period={PERIOD}" / "contract_commitment.csv").read_text()
    assert text.splitlines() == [",".join(columns("Contract Commitment"))]
    assert (
        check_rows([], "Contract Commitment")
        == []
        == list(check_header(text.strip().split(","), "Contract Commitment"))
    )
    assert manifest["dataset_rows"]["Contract Commitment"] == 0


async def test_a_projects_finance_sees_no_other_projects_commitment(booked: Any, out: Path) -> None:
    async with booked.services.database.transaction() as session:
        await post_many(session, [(event, START + 40 * 24 * HOUR) for event in other_events()])
    for project, count in (("ads", 0), ("search", 1)):
        key = await booked.key("finance", project=project)
        answer = await booked.call("GET", f"/v1/ledger/exports?format=focus-1.4&period={PERIOD}", key=key)
        with zipfile.ZipFile(io.BytesIO(answer.raw)) as archive:
            archive.extractall(out / project)
        assert len(rows_of(out / project, "contract_commitment")) == count


async def test_the_parquet_holds_exact_decimals(booked: Any, out: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    await unpacked(booked, out, format="focus-1.4", period=PERIOD)
    table = parquet.read_table(out / f"billing_period={PERIOD}" / "cost_and_usage.parquet")
    rows = rows_of(out)
    assert table.num_rows == len(rows)
    assert table.column("BilledCost").to_pylist() == [Decimal(row["BilledCost"]) for row in rows]
    assert table.column("ChargeClass").null_count == len(rows)
    assert str(table.schema.field("BilledCost").type) == "decimal128(38, 18)"


async def test_a_correction_downwards_is_a_negative_row_of_the_same_sku(booked: Any, out: Path) -> None:
    await unpacked(booked, out, format="focus-1.4", period=PERIOD)
    below = [row for row in rows_of(out) if row["x_RentalId"] == "rental_c"][-1]
    assert below["PricingQuantity"].startswith("-0.2777")  # 1,000 of 3,600 seconds are given back
    assert Decimal(below["BilledCost"]) < 0
    assert below["ChargePeriodStart"] < below["ChargePeriodEnd"]


async def test_the_erp_journal_balances_and_what_is_unmapped_blocks_the_close(booked: Any, out: Path) -> None:
    refused = await booked.call("GET", f"/v1/ledger/exports?format=erp&period={PERIOD}")
    assert (refused.status, refused.code) == (422, "export_refused")
    assert (await booked.call("PUT", "/v1/ledger/accounts", json=MAPPING)).json["version"] == 1
    assert (await booked.call("PUT", "/v1/ledger/accounts", json=MAPPING)).json["version"] == 1
    manifest = await unpacked(booked, out / "1", format="erp", period=PERIOD)
    assert (manifest["mapping_version"], manifest["blocks_close"]) == (1, False)
    rows = list(csv.DictReader(io.StringIO((out / "1" / f"journal-{PERIOD}.csv").read_text())))
    debits, credits = (sum(Decimal(row[side] or 0) for row in rows) for side in ("debit", "credit"))
    assert debits == credits > 0
    assert len({row["external_id"] for row in rows}) == len(rows)
    less = {**MAPPING, "rules": MAPPING["rules"][:1]}
    assert (await booked.call("PUT", "/v1/ledger/accounts", json=less)).json["version"] == 2
    manifest = await unpacked(booked, out / "2", format="erp", period=PERIOD)
    assert manifest["blocks_close"] and "Liabilities:Accrued:Aws of search" in manifest["unmapped"]
    booked.services.database.clock_offset_us = 40 * 86_400_000_000  # the month is over
    closing = await booked.call("POST", f"/v1/ledger/periods/{PERIOD}/close", json={})
    assert closing.code == "unmapped_accounts"
    assert (await booked.call("POST", "/v1/ledger/periods/2026-13/close", json={})).status in (400, 404)
    await booked.call("PUT", "/v1/ledger/accounts", json=MAPPING)
    assert (await booked.call("POST", f"/v1/ledger/periods/{PERIOD}/close", json={})).status == 200


async def test_the_example_account_mapping_leaves_no_account_in_suspense(booked: Any, out: Path) -> None:
    """docs/examples/accounts.json, as finance would begin with it."""
    example = json.loads((EXAMPLES / "accounts.json").read_text())
    async with booked.services.database.transaction() as session:
        await post_many(session, [(each, START + 40 * 24 * HOUR) for each in other_events()])
    assert (await booked.call("PUT", "/v1/ledger/accounts", json=example)).status == 200
    manifest = await unpacked(booked, out, format="erp", period=PERIOD)
    assert (manifest["blocks_close"], manifest["unmapped"]) == (False, [])


async def test_the_audit_packet_is_checked_without_us_and_notices_any_change(booked: Any, out: Path) -> None:
    await unpacked(booked, out, format="audit")

    def check() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-I", str(out / "check.py")], capture_output=True, text=True, check=False
        )

    assert check().returncode == 0, check().stdout
    body = (out / "entries.jsonl").read_bytes()
    for at in (10, len(body) // 2, len(body) - 9):
        (out / "entries.jsonl").write_bytes(body[:at] + bytes([body[at] ^ 1]) + body[at + 1 :])
        assert check().returncode != 0, f"byte {at}"


async def test_the_packet_of_the_whole_books_is_sealed_and_our_verifier_takes_it(booked: Any, out: Path) -> None:
    manifest = await unpacked(booked, out, format="audit")
    assert manifest["sealed_leaves"]["books"] == manifest["entries"] > 0
    told = (await booked.call("GET", "/v1/ledger/key")).json["public_key"]
    assert verify(out, read_keys(told)).problems == ()
    body = (out / "postings.csv").read_bytes()
    (out / "postings.csv").write_bytes(body.replace(b"12.345678901", b"12.345678902", 1))
    assert [each.where for each in verify(out, read_keys(told)).problems] == ["postings.csv"]


async def test_a_workbook_has_numbers_and_the_exact_text(booked: Any, out: Path) -> None:
    pytest.importorskip("xlsxwriter")
    manifest = await unpacked(booked, out, format="xlsx", period=PERIOD)
    assert Decimal(manifest["cost"]) == await expenses(booked)
    with zipfile.ZipFile(out / f"ledger-{PERIOD}.xlsx") as book:
        strings = book.read("xl/sharedStrings.xml").decode()
    assert manifest["cost"] in strings


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ("format=focus-1.5&period=2026-11", 400),
        ("format=focus-1.4&period=2026-13", 400),
        ("format=focus-1.4", 422),
        ("format=focus-1.4&period=2026-11&mode=both", 400),
    ],
)
async def test_what_cannot_be_exported_is_refused_with_the_reason(booked: Any, query: str, status: int) -> None:
    answer = await booked.call("GET", f"/v1/ledger/exports?{query}")
    assert answer.status == status and answer.json["error"]["message"]


async def test_a_projects_finance_exports_that_project_only_and_others_nothing(booked: Any, out: Path) -> None:
    key = await booked.key("finance", project="ads")
    answer = await booked.call("GET", f"/v1/ledger/exports?format=focus-1.4&period={PERIOD}", key=key)
    with zipfile.ZipFile(io.BytesIO(answer.raw)) as archive:
        archive.extractall(out)
    assert {row["SubAccountId"] for row in rows_of(out)} == {"ads"}
    submitter = await booked.key("submitter", project="ads")
    assert (await booked.call("GET", "/v1/ledger/exports?format=csv", key=submitter)).status == 403
