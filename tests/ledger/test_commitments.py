"""What is bought ahead is amortised to the nano, used and unused; a closed month takes nothing more."""

from __future__ import annotations

from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.database import Database
from ledger import audit
from ledger.book import balances, entries, post
from ledger.commitments import HOUR_US, Commitment, amortise, commitments, due
from ledger.errors import LotsExhausted, MalformedEvent, PeriodClosed
from ledger.event import Dims, Event, Facts, Line
from ledger.periods import close, in_suspense
from tests.support.sealed_books import NOW, exchange

DAY_US = 24 * HOUR_US
BUY = Event(
    key="buy-1",
    kind="commitment.buy",
    occurred_at_us=NOW,
    actor="fin",
    dims=Dims(),
    lines=(Line(account="Assets:Commitments:Ri--1", nano=1000), Line(account="Liabilities:Payable:Aws", nano=-1000)),
    facts=Facts(commitment="ri-1", market="aws", from_us=NOW, until_us=NOW + DAY_US),
)


@given(
    nano=st.integers(0, 10**15), hours=st.integers(1, 9000), cuts=st.lists(st.integers(0, 9000 * HOUR_US), max_size=6)
)
def test_however_often_it_is_looked_at_the_parts_sum_to_the_purchase(nano: int, hours: int, cuts: list[int]) -> None:
    bought = Commitment("c", "aws", "USD", nano, 0, hours * HOUR_US)
    looks = [*sorted(cuts), hours * HOUR_US]
    amounts = [due(bought, at) for at in looks]
    assert amounts == sorted(amounts)
    assert amounts[-1] == nano


async def test_a_commitment_is_expensed_by_use_and_the_rest_is_shown_as_unused(books: Database) -> None:
    async with books.transaction() as session:
        await post(session, BUY, recorded_at_us=NOW)
        (bought,) = await commitments(session)
        spans = [(NOW, NOW + 6 * HOUR_US)]
        for hours in (3, 3, 12, 24, 30):
            await amortise(session, bought, spans, now_us=NOW + hours * HOUR_US)
        assert len(await entries(session, kind="commitment.amortise")) == 3
        sums = {each.account: each.nano for each in await balances(session)}
        assert await audit.check(session) == []
    assert sums["Assets:Commitments:Ri--1"] == 0
    assert sums["Expenses:Compute:Committed:Aws"] == 250
    assert sums["Expenses:Unused:Ri--1"] == 750


async def test_a_commitment_whose_account_a_person_spelt_otherwise_is_amortised_all_the_same(books: Database) -> None:
    by_hand = Event(
        key="buy-2",
        kind="commitment.buy",
        occurred_at_us=NOW,
        actor="fin",
        dims=Dims(),
        lines=(Line(account="Assets:Commitments:Ri-1", nano=1000), Line(account="Liabilities:Payable:Aws", nano=-1000)),
        facts=Facts(commitment="ri-1", market="aws", from_us=NOW, until_us=NOW + DAY_US),
    )
    async with books.transaction() as session:
        await post(session, by_hand, recorded_at_us=NOW)
        (bought,) = await commitments(session)
        for hours in (3, 3, 30):
            await amortise(session, bought, [], now_us=NOW + hours * HOUR_US)
        sums = {each.account: each.nano for each in await balances(session)}
    assert (sums["Assets:Commitments:Ri-1"], sums["Expenses:Unused:Ri--1"]) == (0, 1000)


async def test_a_closed_month_takes_nothing_more_and_late_news_goes_to_the_next(books: Database) -> None:
    """NOW is in November 2026."""
    late = Event(
        key="late",
        kind="prepaid.fund",
        occurred_at_us=NOW - 30 * DAY_US,
        actor="fin",
        dims=Dims(),
        lines=(Line(account="Assets:Prepaid:Aws", nano=5), Line(account="Assets:Bank:Main", nano=-5)),
    )
    async with books.transaction() as session:
        await close(session, "2026-10", now_us=NOW, actor="fin")
        await post(session, late, recorded_at_us=NOW)
        assert [each.period for each in await entries(session)] == ["2026-11", "2026-11"]
        with pytest.raises(PeriodClosed):
            await close(session, "2026-10", now_us=NOW, actor="fin")
        with pytest.raises(MalformedEvent, match="has ended"):
            await close(session, "2026-11", now_us=NOW, actor="fin")
        assert await audit.check(session) == []


async def test_a_month_with_money_in_suspense_is_not_closed(books: Database) -> None:
    lines = (Line(account="Assets:Suspense:Aws", nano=5), Line(account="Liabilities:Payable:Aws", nano=-5))
    unexplained = Event(
        key="inv", kind="invoice.match", occurred_at_us=NOW - 30 * DAY_US, actor="fin", dims=Dims(), lines=lines
    )
    async with books.transaction() as session:
        await post(session, unexplained, recorded_at_us=NOW)
        with pytest.raises(MalformedEvent, match="Assets:Suspense:Aws"):
            await close(session, "2026-10", now_us=NOW, actor="fin")


async def test_two_invoices_in_suspense_are_not_set_off_against_each_other(books: Database) -> None:
    """+$5 of September's and -$5 of October's: both wait for a person. A correction belongs to what it corrects."""

    def matched(invoice: str, nano: int, days_ago: int, corrects: str | None = None) -> Event:
        lines = (
            Line(account="Assets:Suspense:Aws", nano=nano),
            Line(account="Liabilities:Payable:Aws", nano=-nano),
        )
        facts = Facts(market="aws") if corrects else Facts(market="aws", invoice=invoice)
        kind: Literal["correction", "invoice.match"] = "correction" if corrects else "invoice.match"
        at_us = NOW - days_ago * DAY_US
        return Event(
            key=f"{invoice}:{nano}", kind=kind, occurred_at_us=at_us, actor="fin", dims=Dims(), lines=lines, facts=facts,
            corrects=corrects,
        )  # fmt: skip

    async with books.transaction() as session:
        await post(session, matched("i_sep", 5, 60), recorded_at_us=NOW)
        await post(session, matched("i_oct", -5, 30), recorded_at_us=NOW)
        assert [(each.invoice, each.nano) for each in await in_suspense(session, "2026-09")] == [("i_sep", 5)]
        with pytest.raises(MalformedEvent, match="of i_sep"):
            await close(session, "2026-09", now_us=NOW, actor="fin")
        assert [each.invoice for each in await in_suspense(session, "2026-10")] == ["i_oct", "i_sep"]
        await post(session, matched("by_hand", -5, 0, corrects="i_sep:5"), recorded_at_us=NOW)
        await close(session, "2026-09", now_us=NOW, actor="fin")
        with pytest.raises(MalformedEvent, match="of i_oct"):
            await close(session, "2026-10", now_us=NOW, actor="fin")


async def test_units_are_spent_first_in_first_out_at_what_they_did_cost(books: Database) -> None:
    """1 AKT at $0.75, then 1 at $1; 1.5 are spent when one is worth $2: $1.25 of cost, $3 of expense, $1.75 gained."""
    akt, dollar = 10**9, 10**9
    liquidity = "Equity:FX:Liquidity:AKT"

    def spend(key: str, amount: int, cost: int) -> Event:
        worth = amount * 2
        lines = [("Assets:Wallet:Akash", -amount, "AKT"), (liquidity, amount, "AKT"), (liquidity, -cost, "USD"),
                 ("Expenses:Compute:OnDemand:Akash", worth, "USD"), ("Income:FX:Realised", cost - worth, "USD")]  # fmt: skip
        made = tuple(Line(account=account, nano=nano, unit=unit) for account, nano, unit in lines)
        facts = Facts(rate="2", rate_unit="AKT", rate_quote="USD", rate_source="test", rate_at_us=NOW)
        return Event(
            key=key, kind="escrow.spend", occurred_at_us=NOW, actor="fin", dims=Dims(), lines=made, facts=facts
        )

    async with books.transaction() as session:
        await post(session, exchange("a", akt, 75 * dollar // 100), recorded_at_us=NOW)
        await post(session, exchange("b", akt, dollar), recorded_at_us=NOW)
        with pytest.raises(MalformedEvent, match="first in, first out"):
            await post(session, spend("wrong", 3 * akt // 2, dollar), recorded_at_us=NOW)
        await post(session, spend("right", 3 * akt // 2, 125 * dollar // 100), recorded_at_us=NOW)
        with pytest.raises(LotsExhausted):
            await post(session, spend("more", akt, dollar), recorded_at_us=NOW)
        sums = {(each.account, each.unit): each.nano for each in await balances(session)}
        assert await audit.check(session) == []
    assert sums[liquidity, "AKT"] == -akt // 2
    assert sums[liquidity, "USD"] == dollar // 2
    assert sums["Income:FX:Realised", "USD"] == -175 * dollar // 100
