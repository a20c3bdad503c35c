"""Invoices over HTTP: what a provider asks for is what the books owe, and what nobody can explain waits for a named person."""

from __future__ import annotations

import asyncio
import csv
import io
import zipfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any

import pytest

from broker.finance.reconciliation import Asked
from broker.keys import create_key
from ledger.accrual import accrue
from ledger.book import post
from ledger.event import Dims, Event, Line
from markets.tables import RentalRow
from tests.support.month_of_books import MACHINES, PERIOD, book_month, meter_of

OCTETS = {"Content-Type": "application/octet-stream"}


@pytest.fixture
async def booked(server: Any) -> Any:
    await book_month(server.services.database)
    return server


async def export(server: Any) -> Any:
    return await server.call("GET", f"/v1/ledger/exports?format=focus-1.4&period={PERIOD}")


async def own_bill(
    server: Any, provider: str, change: Callable[[list[dict[str, str]]], None] = lambda rows: None
) -> bytes:
    """The provider's bill as our own FOCUS export has it (a provider's would say the same), after `change`."""
    exported = await export(server)
    with zipfile.ZipFile(io.BytesIO(exported.raw)) as archive:
        text = archive.read(f"billing_period={PERIOD}/cost_and_usage.csv").decode()
    rows = [row for row in csv.DictReader(io.StringIO(text)) if row["ServiceProviderName"] == provider]
    for row in rows:
        row["InvoiceId"] = "INV-1"
    change(rows)
    out = io.StringIO()
    writer = csv.DictWriter(out, fieldnames=list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue().encode()


async def send(server: Any, text: bytes, provider: str = "aws", key: str = "admin", **query: str) -> Any:
    asked = "".join(f"&{name}={value}" for name, value in query.items())
    return await server.call(
        "POST", f"/v1/ledger/invoices?provider={provider}{asked}", data=text, headers=OCTETS, key=key
    )


async def balances(server: Any) -> dict[str, Decimal]:
    books = (await server.call("GET", "/v1/ledger/entries?limit=1")).json
    assert books["balanced"], books["findings"]
    return {account: Decimal(amount) for account, amount in books["balances"].items()}


async def entries(server: Any) -> int:
    return len((await server.call("GET", "/v1/ledger/entries?limit=1000")).json["entries"])


def with_tax_and_a_stranger(rows: list[dict[str, str]]) -> None:
    rows.append(
        {**rows[0], "ChargeCategory": "Tax", "BilledCost": "1.20", "ResourceId": "", "x_RentalId": "", "Tags": "{}"}
    )
    rows.append(
        {
            **rows[0],
            "BilledCost": "7.00",
            "ResourceId": "i-stranger",
            "ResourceName": "",
            "x_RentalId": "",
            "Tags": "{}",
        }
    )


async def test_the_books_owe_what_the_provider_asks_for(booked: Any) -> None:
    before = await balances(booked)
    answer = await send(booked, await own_bill(booked, "aws", with_tax_and_a_stranger))
    assert answer.status == 200, answer.raw
    told = answer.json
    assert Decimal(told["billed_usd"]) == -before["Liabilities:Accrued:Aws"] + Decimal("8.20")
    assert [(each["code"], each["usd"]) for each in told["variances"]] == [("tax", "1.2"), ("unknown_resource", "7")]
    after = await balances(booked)
    assert after["Liabilities:Payable:Aws"] == -Decimal(told["billed_usd"])
    assert after["Liabilities:Accrued:Aws"] == 0
    assert (after["Assets:Suspense:Aws"], after["Expenses:Variance:Aws"]) == (7, Decimal("1.2"))


async def test_what_an_invoice_of_this_month_left_unexplained_keeps_no_month_before_open(booked: Any) -> None:
    """October could not be closed while a charge of November waited: money in suspense counted whenever it had come there."""
    assert (await send(booked, await own_bill(booked, "aws", with_tax_and_a_stranger))).json["exceptions"]
    closed = await booked.call("POST", "/v1/ledger/periods/2026-10/close", json={})
    assert closed.status == 200, closed.raw


async def test_a_file_of_several_invoices_is_imported_one_after_the_other(booked: Any) -> None:
    def two(rows: list[dict[str, str]]) -> None:
        rows.append({**rows[0], "InvoiceId": "INV-2", "ChargeCategory": "Tax", "BilledCost": "1.5", "Tags": "{}"})

    text = await own_bill(booked, "aws", two)
    both = await send(booked, text)
    assert (both.status, both.code) == (400, "bad_invoice") and "INV-1, INV-2" in both.json["error"]["message"]
    none = await send(booked, text, number="INV-3")
    assert none.status == 400 and "INV-1, INV-2" in none.json["error"]["message"]
    told = [(await send(booked, text, number=number)).json for number in ("INV-1", "INV-2")]
    assert [(each["number"], [it["code"] for it in each["variances"]]) for each in told] == [
        ("INV-1", []), ("INV-2", ["tax"]),
    ]  # fmt: skip
    again = await send(booked, text, number="INV-2")
    assert (again.status, again.code) == (422, "invoice_refused")


async def test_a_trial_posts_nothing_and_an_import_posts_once(booked: Any) -> None:
    text, count = await own_bill(booked, "aws"), await entries(booked)
    assert (await send(booked, text, trial="true")).json["id"] is None
    assert await entries(booked) == count
    assert (await send(booked, text)).status == 200
    again = await send(booked, text)
    assert (again.status, again.code) == (422, "invoice_refused")
    other = await send(booked, text + b"\n")
    assert (other.status, other.code) == (422, "invoice_refused"), "another file of the same invoice"
    assert await entries(booked) == count + 1


@pytest.mark.parametrize(
    ("change", "status", "says"),
    [
        (lambda text: text.replace(b"USD", b"XQQ"), 400, "XQQ"),
        (lambda text: text.replace(b"USD", b"EUR"), 422, "no rate"),
        (lambda text: b"this is no bill", 400, "missing"),
        (lambda text: text.replace(b"Usage,", b"Sausage,", 1), 400, "line 2"),
    ],
)
async def test_bad_input_is_refused_and_nothing_is_posted(
    booked: Any, change: Callable[[bytes], bytes], status: int, says: str
) -> None:
    count = await entries(booked)
    answer = await send(booked, change(await own_bill(booked, "aws")))
    assert answer.status == status and says in answer.json["error"]["message"], answer.raw
    assert await entries(booked) == count
    assert (await booked.call("GET", "/v1/ledger/invoices")).json["data"] == []


async def test_a_closed_month_takes_no_invoice(booked: Any) -> None:
    text = await own_bill(booked, "aws")
    close = Event(
        key=f"period.close:{PERIOD}", kind="period.close", occurred_at_us=1_796_169_600_000_000, actor="ada", dims=Dims(),
        lines=(Line(account=f"Memo:Closed:{PERIOD}", nano=1), Line(account="Memo:Contra", nano=-1)),
    )  # fmt: skip
    async with booked.services.database.transaction() as session:
        await post(session, close, recorded_at_us=1_796_169_600_000_000)
    count = await entries(booked)
    answer = await send(booked, text)
    assert answer.status == 422 and "closed" in answer.json["error"]["message"]
    assert await entries(booked) == count


async def test_who_imports_does_not_decide_and_a_decision_stands(booked: Any) -> None:
    await send(booked, await own_bill(booked, "aws", with_tax_and_a_stranger))
    [waiting] = (await booked.call("GET", "/v1/ledger/exceptions?state=open")).json["data"]
    path, accept = (
        f"/v1/ledger/exceptions/{waiting['id']}/decision",
        {"decision": "accept", "reason": "found on a ticket"},
    )
    alone = await booked.call("POST", path, json=accept)
    assert alone.status == 422 and "another person" in alone.json["error"]["message"]
    async with booked.services.database.transaction() as session:
        _, grace = await create_key(session, principal="grace", project=None, roles=("finance",), now_us=1)
    disputed = await booked.call("POST", path, key=grace, json={"decision": "dispute", "reason": "not ours"})
    assert (disputed.json["state"], disputed.json["decided_by"]) == ("disputed", "grace")
    assert (await balances(booked))["Assets:Suspense:Aws"] == 7
    assert (await booked.call("POST", path, key=grace, json=accept)).json["state"] == "accepted"
    after = await balances(booked)
    assert (after["Assets:Suspense:Aws"], after["Expenses:Variance:Aws"]) == (0, Decimal("8.2"))
    assert (await booked.call("POST", path, key=grace, json=accept)).status == 422
    assert (await booked.call("POST", "/v1/ledger/exceptions/exception_x/decision", json=accept)).status == 404


async def test_focus_after_reconciliation_sums_to_each_invoice(booked: Any) -> None:
    """Of FOCUS: the BilledCost of an InvoiceDetailId in Cost and Usage is that of Invoice Detail."""
    await send(booked, await own_bill(booked, "aws", with_tax_and_a_stranger))
    exported = await booked.call("GET", f"/v1/ledger/exports?format=focus-1.4&period={PERIOD}")
    with zipfile.ZipFile(io.BytesIO(exported.raw)) as archive:
        usage, details = (
            list(csv.DictReader(io.StringIO(archive.read(f"billing_period={PERIOD}/{name}.csv").decode())))
            for name in ("cost_and_usage", "invoice_detail")
        )
    for detail in details:
        rows = [row for row in usage if row["InvoiceDetailId"] == detail["InvoiceDetailId"]]
        assert sum(Decimal(row["BilledCost"]) for row in rows) == Decimal(detail["BilledCost"])
    assert sum(Decimal(detail["BilledCost"]) for detail in details) == Decimal("34.293552503") + Decimal("8.2")


async def test_a_project_imports_no_invoices(booked: Any) -> None:
    key = await booked.key("finance", project="ads")
    assert (await send(booked, b"x", key=key)).status == 422
    assert (await booked.call("GET", "/v1/ledger/exceptions", key=key)).status == 422


async def test_a_projects_export_holds_no_invoices_and_exceptions_of_the_house(booked: Any) -> None:
    """A finance key of one project got all tenants' invoices and exceptions, in the workbook and in FOCUS' Invoice Detail."""
    pytest.importorskip("xlsxwriter")
    assert (await send(booked, await own_bill(booked, "aws", with_tax_and_a_stranger))).status == 200
    ads = await booked.key("finance", project="ads")
    for key, query, is_all in (("admin", "", True), (ads, "", False), ("admin", "&project=ads", False)):
        for form in ("xlsx", "focus-1.4"):
            answer = await booked.call("GET", f"/v1/ledger/exports?format={form}&period={PERIOD}{query}", key=key)
            assert answer.status == 200, answer.raw
            texts = "\n".join(_texts(answer.raw))
            assert ("INV-1" in texts) is is_all, (form, query)
            assert ("invoice_detail.csv" in texts or form == "xlsx") is (is_all or form == "xlsx")
            assert ("i-stranger" in texts) is (is_all and form == "xlsx")


async def test_a_second_bill_of_the_month_for_a_machine_that_went_on_is_booked_once(booked: Any) -> None:
    """It was called billed_twice; the second month's half was a cost twice once a person accepted it."""
    [machine] = [each for each in MACHINES if each.rental == "rental_a"]
    whole = -(await balances(booked))["Liabilities:Accrued:Aws"]
    assert (await send(booked, await own_bill(booked, "aws"))).status == 200
    until = machine.started_us + 13_600 * 1_000_000
    async with booked.services.database.transaction() as session:
        await accrue(session, meter_of(machine), until_us=until, final=True, actor="test", recorded_at_us=until)
    more = -(await balances(booked))["Liabilities:Accrued:Aws"]
    assert more > 0

    def rest(rows: list[dict[str, str]]) -> None:
        rows[:] = rows[-1:]
        assert Decimal(rows[0]["BilledCost"]) == more
        rows[0]["InvoiceId"] = "INV-2"

    second = await own_bill(booked, "aws", rest)
    answer = await send(booked, second)
    assert (answer.status, answer.json["variances"], answer.json["matched"]) == (200, [], 1), answer.raw
    after = await balances(booked)
    assert (after["Liabilities:Accrued:Aws"], after["Liabilities:Payable:Aws"]) == (0, -(whole + more))
    assert after.get("Assets:Suspense:Aws", 0) == after.get("Expenses:Variance:Aws", 0) == 0
    again = await send(booked, second.replace(b"INV-2", b"INV-3"))
    assert [each["code"] for each in again.json["variances"]] == ["billed_twice"]
    sums: dict[str, Decimal] = defaultdict(Decimal)
    with zipfile.ZipFile(io.BytesIO((await export(booked)).raw)) as archive:
        for row in csv.DictReader(io.StringIO(archive.read(f"billing_period={PERIOD}/cost_and_usage.csv").decode())):
            sums[row["InvoiceId"]] += Decimal(row["BilledCost"])
    assert (sums["INV-1"], sums["INV-2"]) == (whole, more)


async def test_a_line_that_names_what_many_machines_have_in_common_is_of_none_of_them(booked: Any) -> None:
    """Every string of a machine's facts was a name of it: its region, its owner."""
    async with booked.services.database.transaction() as session:
        row = await session.get_one(RentalRow, "rental_a")
        row.market_facts = {"id": "i-mine", "region": "eu-west-1", "pid": "17"}

    def of_strangers(rows: list[dict[str, str]]) -> None:
        first = rows[0] | {"ResourceName": "", "x_RentalId": "", "Tags": "{}"}
        rows[:] = [first | {"ResourceId": name} for name in ("eu-west-1", "17", "i-mine")]

    answer = await send(booked, await own_bill(booked, "aws", of_strangers))
    assert answer.json["matched"] == 1, answer.raw
    assert sorted(each["subject"] for each in answer.json["variances"]) == ["17", "eu-west-1", "rental_a"]


def _texts(archive: bytes) -> Iterator[str]:
    """Names and contents of all files, those in workbooks, too."""
    with zipfile.ZipFile(io.BytesIO(archive)) as opened:
        for name in opened.namelist():
            yield name
            if name.endswith(".xlsx"):
                yield from _texts(opened.read(name))
            elif not name.endswith(".parquet"):
                yield opened.read(name).decode()


async def test_matching_a_bill_keeps_nobody_from_posting_and_two_of_one_month_are_not_matched_at_once(
    booked: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything was read and matched under the head of the books, on the event loop: the whole house waited for a bill."""
    first, second = await own_bill(booked, "aws"), await own_bill(booked, "aws")
    second = second.replace(b"INV-1", b"INV-2")
    asked = Asked.matched
    meanwhile: list[Any] = []

    def slowly(self: Asked) -> Any:
        found = asked(self)
        if self.bill.number == "INV-1":
            meanwhile.append(asyncio.run_coroutine_threadsafe(send(booked, second), loop).result(30))
        return found

    loop = asyncio.get_running_loop()
    monkeypatch.setattr(Asked, "matched", slowly)
    late = await send(booked, first)
    assert meanwhile[0].status == 200, "posted while the other was matched"
    assert (late.status, late.code) == (422, "invoice_refused")
    assert "in the same moment" in late.json["error"]["message"]


@pytest.mark.parametrize(("dated", "status"), [("2026-10-31", 422), ("2026-11-18", 422), ("2026-11-26", 200)])
async def test_a_bill_is_not_counted_by_a_rate_that_is_older_than_prices_may_be(
    booked: Any, dated: str, status: int
) -> None:
    """The newest that the books had counted, were it of last year: the move of the currency was booked as a dispute."""
    rate = {"unit": "EUR", "rate": "1.25", "dated": dated, "source": "ECB"}
    assert (await booked.call("POST", "/v1/ledger/rates", json={"rates": [rate]})).status == 200
    text = (await own_bill(booked, "aws")).replace(b"USD", b"EUR")
    count = await entries(booked)
    answer = await send(booked, text)
    assert answer.status == status, answer.raw
    if status == 422:
        assert answer.code == "invoice_rate_too_old" and await entries(booked) == count
        assert f"1.25 of {dated} (ECB)" in answer.json["error"]["message"]
        assert (await send(booked, text, rate="1.25")).status == 200, "what a person says counts"
