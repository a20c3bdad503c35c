"""What comes back from markets is in the books without anybody posting it: deposits, and hours that are free by their terms."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest

from broker.control.accrue import Accruer
from broker.control.settle import meter_of
from broker.finance.reconciliation import Imported, ask, import_invoice
from jobs.clock import db_now
from ledger import audit
from ledger.accrual import accrue
from ledger.book import balances
from ledger.reconcile.bill import Bill, BillLine
from markets.offer_record import record_from_offer
from markets.tables import RentalRow
from tests.broker.control.test_settled_costs import end

DOLLAR = 10**9
HUNDREDTH = Decimal("0.1")  # what 100 s cost at $3.60 an hour


def last_month() -> datetime:
    """Its first moment. Machines of invoices run in it: those of `now` are in two months when one has just begun."""
    return (datetime.now(UTC).replace(day=1) - timedelta(days=1)).replace(
        day=1, hour=0, minute=0, second=0, microsecond=0
    )


async def machine(
    town: Any, *, market: str = "town", started: datetime | None = None, **fields: Any
) -> tuple[Any, str]:
    """One that has run for 100 s (or since `started`), at an offer with these fields."""
    of = replace(town.offer(), **fields)
    await town.list_offers(of)
    ran_s = 100 if started is None else int((datetime.now(UTC) - started).total_seconds())
    rental = await town.rental(of, purpose=(await town.batch(),), ran_s=ran_s)
    async with town.database.transaction() as session:
        row = await session.get_one(RentalRow, rental)
        row.facts, row.market, row.pricing = record_from_offer(of), market, "spot"
    return of, str(rental)


async def held_by(town: Any, market: str) -> dict[str, int]:
    """What lies with the market or is owed to it, in nano-USD; the books are whole."""
    async with town.database.transaction() as session:
        assert [each for each in await audit.check(session) if each.severity == "error"] == []
        sums = await balances(session)
    return {
        each.account.removesuffix(f":{market}"): each.nano
        for each in sums
        if each.account.endswith(f":{market}") and each.nano and not each.account.startswith(("Memo:", "Expenses:"))
    }


@pytest.mark.own_writes
async def test_what_comes_back_of_a_deposit_lies_with_the_market_while_the_machine_runs(town: Any) -> None:
    """$2.50 are paid, a fifth stays there: the loops book both ways, and what stays is a cost as before."""
    of, rental = await machine(town, deposit=Decimal("2.50"), refundable_fraction=Decimal("0.8"))
    for _ in range(2):
        await Accruer(town.services).step()
    running = await held_by(town, "Town")
    assert (running["Assets:Deposit"], running["Liabilities:Payable"]) == (2 * DOLLAR, -2 * DOLLAR)
    await end(town, of, rental)
    over = await held_by(town, "Town")
    assert set(over) == {"Liabilities:Accrued"}, over


async def bill_of(town: Any, *lines: BillLine, month: datetime | None = None) -> Imported:
    period = (month or last_month()).strftime("%Y-%m")
    asked_of = Bill("aws", f"INV-{period}", period, "USD", "aws-cur", lines)
    async with town.database.transaction() as session:
        asked = await ask(session, asked_of, period.encode(), now_us=await db_now(session), most_days=7)
        return await import_invoice(session, asked, asked.matched(), now_us=await db_now(session), by="fin")


def line(name: str, amount: Decimal) -> BillLine:
    return BillLine(number=2, names=(name,), amount=amount, kind="usage", hours=Decimal(100) / 3600)


@pytest.mark.own_writes
@pytest.mark.parametrize("is_named", [True, False])  # at $0, or not at all
async def test_runs_on_365_a_spot_machine_that_aws_took_back_in_its_first_hour_is_free(
    town: Any, is_named: bool
) -> None:
    of, rental = await machine(town, market="aws", started=last_month() + timedelta(days=9))
    await end(town, of, rental, reason="preempted")
    due = await held_by(town, "Aws")
    assert (due["Assets:Receivable"], due["Income:Refunds"], due["Liabilities:Accrued"]) == (
        DOLLAR // 10, -DOLLAR // 10, -DOLLAR // 10,
    )  # fmt: skip
    other = line("i-other", Decimal(0))
    imported = await bill_of(town, *([line(rental, Decimal(0))] if is_named else []), other)
    assert [each.nano for each in imported.result.variances if each.nano] == []
    assert (imported.result.not_billed, imported.exceptions) == ((), ())
    assert await held_by(town, "Aws") == {"Income:Refunds": -DOLLAR // 10}


@pytest.mark.own_writes
@pytest.mark.parametrize("is_named", [True, False])
async def test_a_free_hour_over_a_months_end_is_no_exception_in_either_month(town: Any, is_named: bool) -> None:
    """Half of it is booked in each month; each month's bill answers for its half, and the books are even after both."""
    second = last_month()
    of, rental = await machine(town, market="aws", started=second - timedelta(seconds=50))
    async with town.database.transaction() as session:
        row = await session.get_one(RentalRow, rental)
        meter = meter_of(row, ())
        running = {"until_us": int(second.timestamp() - 1) * 1_000_000, "final": False, "actor": "loop"}
        await accrue(session, meter, recorded_at_us=await db_now(session), **running)
    await end(town, of, rental, reason="preempted")
    for month in (second - timedelta(days=1), second):
        end_us = int((month.replace(day=28) + timedelta(days=4)).replace(day=1).timestamp()) * 1_000_000
        other = replace(line("i-other", Decimal(0)), end_us=end_us)
        named = [replace(line(rental, Decimal(0)), hours=Decimal(50) / 3600)] if is_named else []
        imported = await bill_of(town, *named, other, month=month)
        assert [each.nano for each in imported.result.variances if each.nano] == []
        assert 0 < imported.result.refunds[rental] < DOLLAR // 10
        assert (imported.result.not_billed, imported.exceptions) == ((), ())
    assert await held_by(town, "Aws") == {"Income:Refunds": -DOLLAR // 10}


@pytest.mark.own_writes
async def test_a_first_hour_that_aws_charges_all_the_same_waits_for_a_person(town: Any) -> None:
    of, rental = await machine(town, market="aws", started=last_month() + timedelta(days=9))
    await end(town, of, rental, reason="preempted")
    imported = await bill_of(town, line(rental, HUNDREDTH))
    assert [(each.code, each.nano) for each in imported.exceptions] == [("not_refunded", DOLLAR // 10)]
    after = await held_by(town, "Aws")
    assert (after["Assets:Suspense"], after["Liabilities:Payable"]) == (DOLLAR // 10, -DOLLAR // 10)
    assert "Liabilities:Accrued" not in after and "Assets:Receivable" not in after


@pytest.mark.own_writes
@pytest.mark.parametrize("reason", ["released", "exited"])
async def test_a_machine_that_we_ended_is_paid_for(town: Any, reason: str) -> None:
    of, rental = await machine(town, market="aws", started=last_month() + timedelta(days=9))
    await end(town, of, rental, reason=reason)
    assert set(await held_by(town, "Aws")) == {"Liabilities:Accrued"}
