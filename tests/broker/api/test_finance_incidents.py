"""Other ledgers' incidents that concern exports, reports and reconciliation, each as a test that would have caught it."""

from __future__ import annotations

import csv
import io
import zipfile
from decimal import Decimal
from typing import Any

import pytest

from ledger.anomalies import MachineFacts, structural
from ledger.focus.charge import amounts
from ledger.movers import Week, movers
from ledger.reconcile.bill import BadBill, Bill, BillLine
from ledger.reconcile.match import Accrued, reconcile
from ledger.reconcile.read import read_bill
from markets.tables import RentalRow
from tests.support.month_of_books import PERIOD, START, book_month

HOUR = 3_600_000_000


@pytest.fixture
async def booked(server: Any) -> Any:
    await book_month(server.services.database)
    return server


def billed(*lines: BillLine) -> Bill:
    return Bill("aws", "INV-1", "2026-11", "USD", "focus", lines)


def line(amount: str, name: str, **facts: Any) -> BillLine:
    return BillLine(number=2, names=(name,), amount=Decimal(amount), kind="usage", **facts)


def test_litellm_37923_usage_that_was_logged_without_cost_is_told_before_the_invoice_comes() -> None:
    """All streamed calls were logged with spend 0: 830 EUR billed, 1.47 USD shown, and no budget fired."""
    machine = MachineFacts("rental_1", "p", "vertex", 500, 0, 10**9, 10**9, 1, False, True, started_us=START)
    assert [each.rule for each in structural([machine], START + HOUR)] == ["usage_without_cost"]
    nothing = Accrued("rental_1", "p", 0, 0, 10**9)
    [found] = reconcile(billed(line("830", "rental_1")), {"rental_1": nothing}).variances
    assert (found.nano, found.is_innocent) == (830 * 10**9, False)


def test_litellm_15740_the_same_line_twice_on_one_invoice_is_seen_as_twice_the_cost() -> None:
    ours = Accrued("rental_1", "p", 10 * 10**9, 36_000, 10**9)
    twice = [line("10", "rental_1", hours=Decimal(10), unit_price=Decimal(1))] * 2
    [found] = reconcile(billed(*twice), {"rental_1": ours}).variances
    assert (found.code, found.nano, found.time_nano) == ("longer", 10 * 10**9, 10 * 10**9)


def test_litellm_6633_a_line_without_any_id_is_kept_and_waits() -> None:
    """Rows with an empty request id were lost to a primary key."""
    found = reconcile(billed(BillLine(2, (), Decimal(3), "usage"), BillLine(3, (), Decimal(4), "usage")), {})
    assert [(each.code, each.nano) for each in found.variances] == [
        ("unknown_resource", 3 * 10**9),
        ("unknown_resource", 4 * 10**9),
    ]


def test_litellm_36426_a_file_with_a_bad_row_is_refused_whole_and_no_row_is_dropped() -> None:
    text = b"BilledCost,BillingCurrency,ChargeCategory,ChargePeriodStart\n1,USD,Usage,2026-11-01\nmany,USD,Usage,2026-11-01\n"
    with pytest.raises(BadBill, match="line 3"):
        read_bill(text, provider="aws", form="focus")


def test_opencost_3894_a_bill_that_is_far_above_the_books_is_split_by_what_is_missing() -> None:
    """45 % under the real bill: list prices, and SKUs that nobody had."""
    ours = Accrued("rental_1", "p", 55 * 10**9, 198_000, 10**9)
    storage = line("20", "vol-1", sku="EBS:VolumeUsage")
    dearer = line("80", "rental_1", hours=Decimal(55), unit_price=Decimal(80) / 55)
    found = {each.subject: each for each in reconcile(billed(dearer, storage), {"rental_1": ours}).variances}
    assert (found["rental_1"].code, found["vol-1"].code) == ("price_moved", "unknown_resource")
    assert found["rental_1"].nano + found["vol-1"].nano == 45 * 10**9


def test_opencost_2243_an_outlier_is_in_the_report_and_in_the_sum() -> None:
    """A guard against outliers dropped points in silence."""
    found = movers({"a": Week(10**9, 3600, 0)}, {"a": Week(10**15, 3600, 0)})
    assert found[0].nano == found[0].price_nano == 10**15 - 10**9


def test_opencost_2901_a_waste_that_moves_between_expenses_is_charged_once() -> None:
    """GPU cost several times the node's: the same money in two rows."""
    lines = [("Expenses:Idle:Aws", "USD", 400), ("Expenses:Compute:Spot:Aws", "USD", -400)]
    assert amounts(lines) == (0, 0)


def test_skypilot_847_a_spot_machine_at_the_on_demand_price_is_named() -> None:
    ours = Accrued("rental_1", "p", 10 * 10**9, 36_000, 10**9, tiers={"on_demand": 3 * 10**9})
    [found] = reconcile(
        billed(line("30", "rental_1", hours=Decimal(10), unit_price=Decimal(3))), {"rental_1": ours}
    ).variances
    assert found.code == "wrong_tier" and "on_demand" in found.explanation


def test_dstack_1890_eight_times_the_shown_price_is_told_on_the_first_interval() -> None:
    machine = MachineFacts("rental_1", "p", "runpod", 0, 10**9, 10**9, 8 * 10**9, 1, False, True, started_us=START)
    assert [each.rule for each in structural([machine], START + HOUR)] == ["charged_above_quote"]


async def test_dstack_1890_what_was_quoted_and_what_is_charged_stand_side_by_side_in_the_books_of_a_machine(
    booked: Any,
) -> None:
    """Eight times the shown price, per GPU and not per machine: the market's own price of the rental, against the offer's that
    the plan was made with, on the day that it was charged, in what finance reads."""
    async with booked.services.database.transaction() as session:
        row = await session.get_one(RentalRow, "rental_c")
        row.price_nano_hour *= 8  # as `rentals.observe` takes it from the market
    found = (await booked.call("GET", "/v1/ledger/anomalies?day=2026-11-01")).json["data"]
    [told] = [each for each in found if each["rule"] == "charged_above_quote"]
    assert told["scope"] == "rental:rental_c"
    assert Decimal(told["actual_usd"]) == 7 * Decimal("0.333333333"), "an hour of it costs so much above the quote"
    weekly = (await booked.call("GET", "/v1/reports/weekly?until=2026-11-08")).json
    [section] = [each for each in weekly["sections"] if each["title"] == "Anomalies"]
    assert "charged_above_quote" in {row[section["columns"].index("rule")] for row in section["rows"]}


def test_ultralytics_1015_billing_after_the_end_is_a_leak_and_no_rounding() -> None:
    ours = Accrued("rental_1", "p", 10 * 10**9, 36_000, 10**9, ended_us=START + 10 * HOUR)
    late = line("12", "rental_1", hours=Decimal(12), unit_price=Decimal(1), end_us=START + 12 * HOUR)
    [found] = reconcile(billed(late), {"rental_1": ours}).variances
    assert found.code == "leaked" and "7200 s" in found.explanation


async def test_langfuse_10592_no_token_makes_a_second_cost_row(booked: Any) -> None:
    """Cached input was counted twice. Of self-hosted models, the machine's hour carries the cost, once."""
    exported = await booked.call("GET", f"/v1/ledger/exports?format=focus-1.4&period={PERIOD}")
    with zipfile.ZipFile(io.BytesIO(exported.raw)) as archive:
        rows = list(csv.DictReader(io.StringIO(archive.read(f"billing_period={PERIOD}/cost_and_usage.csv").decode())))
    entries = [row["x_LedgerTransactionId"] for row in rows]
    assert len(set(entries)) == len(entries)
    assert {row["PricingUnit"] for row in rows} == {"Hours"}


@pytest.mark.parametrize("path", ["/v1/spend?by=project", f"/v1/reports/chargeback?period={PERIOD}&form=csv",
                                  "/v1/ledger/export.csv", f"/v1/ledger/exports?format=csv&period={PERIOD}"])  # fmt: skip
async def test_opencost_1745_every_report_is_there_over_the_api(booked: Any, path: str) -> None:
    """CSV over the API was missing for years."""
    assert (await booked.call("GET", path)).status == 200
