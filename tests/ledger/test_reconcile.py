"""Matching bills: every difference is split to the nano, named, and either innocent or in front of a person."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger.money import cost_of_seconds
from ledger.reconcile.bill import BadBill, Bill, BillLine
from ledger.reconcile.match import INNOCENT, Accrued, Paid, reconcile
from ledger.reconcile.read import read_bill

HOUR_US = 3_600_000_000
OURS = Accrued(
    subject="rental_1", project="search", nano=20_000_000_000, quantity=36_000, price_nano=2_000_000_000,
    ended_us=10 * HOUR_US, tiers={"on_demand": 6_000_000_000},
)  # fmt: skip


def bill(*lines: BillLine, currency: str = "USD") -> Bill:
    return Bill("aws", "INV-1", "2026-11", currency, "focus", lines)


def line(amount: str, *, name: str = "rental_1", **facts: object) -> BillLine:
    return BillLine(number=2, names=(name,), amount=Decimal(amount), kind="usage", **facts)  # type: ignore[arg-type]


TEN = Decimal(10)
CASES = [
    # what the bill says, its name, what of it is time and price (nano)
    (line("20"), "exact", 0, 0),
    (line("20.00", hours=TEN), "exact", 0, 0),
    (line("20.003"), "rounding", 0, 0),
    # leaked: billed two hours beyond its confirmed end
    (line("24", hours=Decimal(12), unit_price=Decimal(2), end_us=12 * HOUR_US), "leaked", 4_000_000_000, 0),
    (line("24", hours=Decimal(12), unit_price=Decimal(2)), "longer", 4_000_000_000, 0),
    (line("18", hours=Decimal(9), unit_price=Decimal(2)), "shorter", -2_000_000_000, 0),
    # SkyPilot #847: the on-demand price for a spot machine
    (line("60", hours=TEN, unit_price=Decimal(6)), "wrong_tier", 0, 40_000_000_000),
    # dstack #1890: eight times the quoted price, per GPU instead of per pod
    (line("160", hours=TEN, unit_price=Decimal(16)), "price_moved", 0, 140_000_000_000),
    (line("22", hours=TEN), "price_moved", 0, 2_000_000_000),
    (line("25"), "unexplained", 0, 0),
]


@pytest.mark.parametrize(("on_bill", "code", "time_nano", "price_nano"), CASES)
def test_a_difference_is_named_by_its_largest_part(
    on_bill: BillLine, code: str, time_nano: int, price_nano: int
) -> None:
    [found] = reconcile(bill(on_bill), {"rental_1": OURS}).variances
    assert (found.code, found.time_nano, found.price_nano) == (code, time_nano, price_nano)
    assert found.time_nano + found.price_nano + found.rest_nano == found.nano


def test_a_minimum_that_the_books_did_not_know_is_named() -> None:
    short = replace(OURS, nano=cost_of_seconds(OURS.price_nano, 20), quantity=20)
    [found] = reconcile(bill(line("0.0333", hours=Decimal(60) / 3600)), {"rental_1": short}).variances
    assert found.code in ("minimum", "rounding")
    hour = replace(short, granularity_s=3600)
    [found] = reconcile(bill(line("2", hours=Decimal(1), unit_price=Decimal(2))), {"rental_1": hour}).variances
    assert (found.code, found.is_innocent) == ("minimum", True)


def test_another_rate_is_fx_and_no_accusation() -> None:
    in_euro = bill(line("18.60", hours=TEN), currency="EUR")
    [found] = reconcile(in_euro, {"rental_1": OURS}, rate=Decimal("1.08")).variances
    assert (found.code, found.nano) == ("fx", 88_000_000)


def test_what_is_not_ours_and_what_leaked_wait_for_a_person() -> None:
    found = reconcile(bill(line("1", name="i-77"), line("2", name="rental_lost")), {"rental_1": OURS})
    assert [each.code for each in found.variances] == ["unknown_resource", "leaked"]
    assert not any(each.is_innocent for each in found.variances)
    assert [each.subject for each in found.not_billed] == ["rental_1"]


def test_a_machine_on_a_second_invoice_is_billed_twice() -> None:
    found = reconcile(bill(line("20")), {"rental_1": OURS}, paid_before={"rental_1": Paid(OURS.nano, OURS.quantity)})
    assert (found.variances[0].code, found.accrued_nano, found.not_billed) == ("billed_twice", 0, ())


def test_a_second_bill_of_the_month_for_a_machine_that_went_on_is_not_billed_twice() -> None:
    """It was called billed_twice, and once a person accepted it the cost was in the books twice."""
    half = {"rental_1": Paid(10_000_000_000, 18_000)}
    on_second = line("10", hours=Decimal(5), unit_price=Decimal(2))
    found = reconcile(bill(on_second), {"rental_1": OURS}, paid_before=half)
    assert [(each.code, each.nano) for each in found.variances] == [("exact", 0)]
    assert (found.accrued_nano, found.paid) == (10_000_000_000, half)
    nothing = reconcile(bill(line("1", name="i-77")), {"rental_1": OURS}, paid_before=half)
    assert [each.nano for each in nothing.not_billed] == [10_000_000_000]
    # the whole of a short machine again, of which little is left: no minimum, a person looks at it
    short = replace(OURS, nano=cost_of_seconds(OURS.price_nano, 60), quantity=60)
    again = reconcile(
        bill(line("0.0333", hours=Decimal(60) / 3600)),
        {"rental_1": short},
        paid_before={"rental_1": Paid(22_222_222, 40)},
    )
    assert not again.variances[0].is_innocent


def test_a_machine_is_known_by_the_providers_own_id() -> None:
    found = reconcile(bill(line("20", name="i-1")), {"rental_1": OURS}, names={"i-1": "rental_1"})
    assert found.matched == ("rental_1",)


AMOUNTS = st.decimals(min_value=-1000, max_value=100_000, places=10, allow_nan=False)


@given(
    st.lists(st.tuples(AMOUNTS, st.sampled_from(["rental_1", "rental_2", "i-9"]),
                       st.sampled_from(["usage", "tax", "credit", "purchase", "adjustment"]),
                       st.none() | st.decimals(min_value=0, max_value=1000, places=4),
                       st.none() | st.decimals(min_value=0, max_value=1000, places=4)), min_size=1, max_size=8),
    st.integers(0, 10**12), st.integers(0, 10**6), st.sampled_from([Decimal(1), Decimal("1.0812345")]),
    st.none() | st.builds(Paid, st.integers(0, 10**12), st.integers(0, 10**6)),
)  # fmt: skip
def test_billed_is_accrued_and_variances_to_the_nano_whatever_is_billed(
    lines: list[tuple[Decimal, str, str, Decimal | None, Decimal | None]], nano: int, seconds: int, rate: Decimal,
    before: Paid | None,
) -> None:  # fmt: skip
    ours = {name: replace(OURS, subject=name, nano=nano, quantity=seconds) for name in ("rental_1", "rental_2")}
    whole = bill(
        *(
            BillLine(number=at, names=(name,), amount=amount, kind=kind, hours=hours, unit_price=price)  # type: ignore[arg-type]
            for at, (amount, name, kind, hours, price) in enumerate(lines)
        )
    )
    found = reconcile(whole, ours, rate=rate, paid_before={"rental_1": before} if before else None)
    assert sum(each.nano for each in found.paid.values()) == found.accrued_nano
    assert found.billed_nano == found.accrued_nano + sum(each.nano for each in found.variances)
    for each in found.variances:
        assert each.time_nano + each.price_nano + each.rest_nano == each.nano
        assert each.explanation
        assert each.nano == 0 or each.code != "exact"
    assert {each.code for each in found.variances if each.is_innocent} <= INNOCENT


FOCUS = b"""BilledCost,BillingCurrency,ChargeCategory,InvoiceId,ResourceId,Tags,PricingQuantity,PricingUnit,ContractedUnitPrice,ChargePeriodStart,ChargePeriodEnd
20.00,USD,Usage,INV-9,i-1,"{""broker-tag"": ""rental_1""}",10,Hours,2,2026-11-01 00:00:00,2026-11-01T10:00:00Z
1.50,USD,Tax,INV-9,NULL,NULL,NULL,NULL,NULL,2026-11-01T00:00:00Z,2026-12-01T00:00:00Z
"""  # noqa: E501 - a header is one line
CUR = b"""lineItem/LineItemType,lineItem/UnblendedCost,lineItem/CurrencyCode,lineItem/ResourceId,lineItem/UsageAmount,pricing/unit,lineItem/UsageStartDate,lineItem/UsageEndDate,bill/InvoiceId,resourceTags/user:broker-tag
Usage,20.0000000000,USD,i-1,10,Hrs,2026-11-01T00:00:00Z,2026-11-01T10:00:00Z,INV-9,rental_1
Credit,-2,USD,,,,2026-11-01T00:00:00Z,2026-11-01T10:00:00Z,INV-9,
"""  # noqa: E501 - a header is one line


@pytest.mark.parametrize(("form", "text"), [("focus", FOCUS), ("aws-cur", CUR)])
def test_bills_of_providers_are_read(form: str, text: bytes) -> None:
    read = read_bill(text, provider="aws", form=form)  # type: ignore[arg-type]
    assert (read.number, read.period, read.currency, len(read.lines)) == ("INV-9", "2026-11", "USD", 2)
    found = reconcile(read, {"rental_1": OURS})
    assert found.matched == ("rental_1",)
    assert [each.code for each in found.variances] == ["exact", "tax" if form == "focus" else "credit"]


def test_a_generic_csv_is_read_by_a_mapping() -> None:
    text = b"Pod,Total,When,Hours\nrental_1,20.00,2026-11-03T00:00:00Z,10\n"
    columns = b'{"resource": "Pod", "amount": "Total", "start": "When", "hours": "Hours"}'
    read = read_bill(text, provider="runpod", form="csv", columns=columns)
    assert (read.currency, read.total, read.lines[0].hours) == ("USD", Decimal("20.00"), TEN)


def test_the_example_of_columns_reads_a_bill_that_has_them() -> None:
    """docs/examples/bill-columns.json, which `broker ledger reconcile --format csv --mapping FILE` takes."""
    head, row = (
        "Instance,Cost,Currency,Hours,Rate,From,To,Note",
        "rental_1,20.00,USD,10,2.00,2026-11-03T00:00:00Z,2026-11-03T10:00:00Z,gpu",
    )
    text = f"{head}\n{row}\n".encode()
    columns = (Path(__file__).parents[2] / "docs" / "examples" / "bill-columns.json").read_bytes()
    read = read_bill(text, provider="runpod", form="csv", columns=columns)
    assert (read.currency, read.total, read.lines[0].hours, read.lines[0].unit_price) == ("USD", 20, 10, 2)
    assert [each.code for each in reconcile(read, {"rental_1": OURS}).variances] == ["exact"]


BAD = [
    # what is wrong, what the message says
    (b"", "empty"),
    (b"\xff\xfe", "not UTF-8"),
    (b"a,b\n1,2\n", "BilledCost"),
    (FOCUS.replace(b"20.00", b"twenty"), "line 2: BilledCost 'twenty' is not a number"),
    (FOCUS.replace(b"20.00", b"NaN"), "line 2"),
    (FOCUS.replace(b"20.00", b"1e30"), "no amount of money"),
    (FOCUS.replace(b"USD", b"XQQ"), "currency 'XQQ' is unknown"),
    (FOCUS.replace(b"1.50,USD", b"1.50,EUR"), "several currencies"),
    (FOCUS.replace(b"1.50,USD,Tax,INV-9", b"1.50,USD,Tax,INV-8"), "several invoices"),
    (FOCUS.replace(b"Usage", b"Use"), "ChargeCategory 'Use'"),
    (FOCUS.replace(b"2026-11-01T10:00:00Z", b"yesterday"), "'yesterday' is not a time"),
    (FOCUS + b"1,2,3\n", "another number of cells"),
    (FOCUS.replace(b'"{""broker-tag"": ""rental_1""}"', b'"{oops"'), "is not JSON"),
    (FOCUS[: FOCUS.index(b"20.00")], "no lines"),
]


@pytest.mark.parametrize(("text", "says"), BAD)
def test_a_malformed_bill_is_refused_by_line_and_reason(text: bytes, says: str) -> None:
    with pytest.raises(BadBill, match=says.replace("(", "\\(")):
        read_bill(text, provider="aws", form="focus")


def test_all_bad_lines_are_named_not_only_the_first() -> None:
    with pytest.raises(BadBill) as caught:
        read_bill(FOCUS.replace(b"20.00", b"x").replace(b"1.50", b"y"), provider="aws", form="focus")
    assert [each.line for each in caught.value.findings] == [2, 3]


def test_a_sandbox_invoice_that_does_not_sum_is_refused() -> None:
    text = (
        b'{"lines": [{"instance": "i", "tag": "rental_1", "offer": "o", "from": "2026-11-01T00:00:00Z", '
        b'"to": "2026-11-01T01:00:00Z", "seconds": 3600, "amount": "2.00"}], "total": "3.00", "currency": "USD"}'
    )
    with pytest.raises(BadBill, match="sum to"):
        read_bill(text, provider="sandbox", form="sandbox")
    read = read_bill(text.replace(b"3.00", b"2.00"), provider="sandbox", form="sandbox")
    assert (read.lines[0].hours, read.period) == (1, "2026-11")


FREE = replace(OURS, nano=0, quantity=100, refund_nano=100_000_000, ended_us=HOUR_US)
HUNDRED_S: dict[str, object] = {"hours": Decimal(100) / 3600, "end_us": 2 * HOUR_US}


@pytest.mark.parametrize(
    ("on_bill", "code"),
    [
        ((line("0", **HUNDRED_S),), "exact"),
        # its disk, charged by gigabyte and month, beside the free hour or alone
        ((line("0", **HUNDRED_S), line("0.0004", sku="EBS:VolumeUsage.gp3")), "rounding"),
        ((line("0.0004", sku="EBS:VolumeUsage.gp3"),), "rounding"),
        ((line("0.02", sku="EBS:VolumeUsage.gp3"),), "unexplained"),
        # its time, even little of it; where no line has hours by the amount
        ((line("0.001", **HUNDRED_S), line("0.0004", sku="EBS:VolumeUsage.gp3")), "not_refunded"),
        ((line("0.1"),), "not_refunded"),
    ],
)
def test_a_free_hour_is_judged_by_what_is_charged_for_time_not_by_a_cent_of_disk(
    on_bill: tuple[BillLine, ...], code: str
) -> None:
    found = reconcile(bill(*on_bill), {"rental_1": FREE})
    assert [each.code for each in found.variances] == [code]
    assert found.refunds == {"rental_1": 100_000_000}


@pytest.mark.parametrize("kind", ["tax", "purchase", "credit"])
@pytest.mark.parametrize("end_us", [None, 2 * HOUR_US])
def test_a_bill_without_usage_answers_no_refund(kind: str, end_us: int | None) -> None:
    """Support or tax of the month says nothing of machines: their refunds wait for the bill that has usage."""
    only = replace(line("7", end_us=end_us), kind=kind)  # type: ignore[arg-type]
    assert reconcile(bill(only), {"rental_1": FREE}).refunds == {}
    other = line("1", name="i-77")
    assert reconcile(bill(only, other), {"rental_1": FREE}).refunds == {"rental_1": 100_000_000}
