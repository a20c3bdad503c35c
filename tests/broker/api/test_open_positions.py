"""What is held in other currencies and coins, by the events that people post and the rates that they give."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger.event import Event, Line
from ledger.lots import Lot
from ledger.rates import DatedRate
from ledger.revaluation import lots_after, revalued, total

DAY = 86_400_000_000
FIRST = 1_793_664_000_000_000  # 2026-11-03
NANO = 10**9
AKT = "Equity:FX:Liquidity:AKT"


def bought(key: str, at_us: int, akt: int, cost: int, unit: str = "USD") -> dict[str, Any]:
    lines = [
        ("Assets:Wallet:Akash", akt, "AKT"),
        (AKT, -akt, "AKT"),
        (AKT, cost, unit),
        ("Assets:Bank:Main", -cost, unit),
    ]
    return posted(key, "fx.buy", at_us, lines)


def spent(key: str, at_us: int, akt: int, cost: int) -> dict[str, Any]:
    lines = [("Assets:Wallet:Akash", -akt, "AKT"), (AKT, akt, "AKT"), (AKT, -cost, "USD"),
             ("Expenses:Compute:OnDemand:Akash", cost, "USD")]  # fmt: skip
    return posted(key, "escrow.spend", at_us, lines)


def posted(key: str, kind: str, at_us: int, lines: list[tuple[str, int, str]]) -> dict[str, Any]:
    return {"key": key, "kind": kind, "occurred_at_us": at_us, "actor": "x", "dims": {},
            "lines": [{"account": account, "nano": nano * NANO, "unit": unit} for account, nano, unit in lines]}  # fmt: skip


@pytest.fixture
async def held(server: Any) -> Any:
    """10 AKT for $20 on the 3rd, 10 AKT for 30 EUR on the 5th, 4 of the first spent on the 6th; credits of a provider."""
    events = [
        bought("one", FIRST, 10, 20),
        bought("two", FIRST + 2 * DAY, 10, 30, "EUR"),
        spent("three", FIRST + 3 * DAY, 4, 8),
        posted(
            "four", "credit.grant", FIRST, [("Assets:Credits:Io", 50, "CREDIT"), ("Income:Grants:Io", -50, "CREDIT")]
        ),
    ]
    answer = await server.call("POST", "/v1/ledger/events", json={"events": events})
    assert answer.status == 200, answer.raw
    rates = [("AKT", "3", "2026-11-03"), ("AKT", "2.5", "2026-11-06"), ("EUR", "1.2", "2026-11-04")]
    given_ = [{"unit": unit, "rate": rate, "dated": dated, "source": "treasury"} for unit, rate, dated in rates]
    assert (await server.call("POST", "/v1/ledger/rates", json={"rates": given_})).status == 200
    return server


def section(found: Any, title: str) -> list[dict[str, str]]:
    one = next(each for each in found["sections"] if each["title"] == title)
    return [dict(zip(one["columns"], row, strict=True)) for row in one["rows"]]


async def test_lots_are_valued_at_the_newest_rate_and_what_has_none_is_in_no_sum(held: Any) -> None:
    found = (await held.call("GET", "/v1/reports/positions")).json
    lots = section(found, "Lots")
    assert [(each["left"], each["cost USD"], each["worth USD"], each["unrealised USD"]) for each in lots] == [
        ("6", "12", "15", "3"),
        ("10", "36", "25", "-11"),  # 30 EUR at the rate of the day that it was bought
    ]
    assert found["facts"]["unrealised gain USD"] == "-8"
    assert found["facts"]["units without a rate, in no sum"] == "CREDIT"
    balances = {(each["account"], each["unit"]): each for each in section(found, "Balances")}
    assert balances["Assets:Wallet:Akash", "AKT"]["worth USD"] == "40"
    assert balances["Assets:Bank:Main", "EUR"]["worth USD"] == "-36"
    assert balances["Assets:Credits:Io", "CREDIT"]["worth USD"] == "-"
    text = (await held.call("GET", "/v1/reports/positions?form=csv")).raw.decode()
    assert "Lots,2,unrealised USD,-11" in text.splitlines()


async def test_a_day_is_shown_as_it_was_with_the_rates_of_then(held: Any) -> None:
    """As of a month's end, when the month is closed: what came later is in neither amounts nor rates."""
    found = (await held.call("GET", "/v1/reports/positions?at=2026-11-03")).json
    assert [(each["left"], each["unrealised USD"]) for each in section(found, "Lots")] == [("10", "10")]
    assert section((await held.call("GET", "/v1/reports/positions?at=2026-11-02")).json, "Lots") == []
    theirs = await held.key("finance", project="theirs")
    refused = await held.call("GET", "/v1/reports/positions", key=theirs)
    assert (refused.status, refused.code) == (422, "all_projects_only")
    assert (await held.call("GET", "/v1/reports/positions?at=2026-02-31")).status == 400


async def test_a_day_on_which_more_was_spent_than_bought_is_told(held: Any) -> None:
    """The spending was dated back beyond the purchase that it used."""
    events = [bought("five", FIRST + 4 * DAY, 1, 2), spent("six", FIRST - DAY, 4, 8)]
    assert (await held.call("POST", "/v1/ledger/events", json={"events": events})).status == 200
    refused = await held.call("GET", "/v1/reports/positions?at=2026-11-02")
    assert (refused.status, refused.code) == (422, "lots_exhausted")


LOTS = st.lists(st.tuples(st.integers(1, 10**15), st.integers(0, 10**15)), min_size=1, max_size=6)


@given(LOTS, st.decimals("0.000001", "1000000", places=6))
def test_gain_is_worth_less_cost_to_the_nano(parts: list[tuple[int, int]], rate: Decimal) -> None:
    events = [
        (seq, Event(key=str(seq), kind="fx.buy", occurred_at_us=0, actor="a", dims=None, lines=(  # type: ignore[arg-type]
            Line(account=AKT, nano=-nano, unit="AKT"), Line(account=AKT, nano=cost, unit="USD"))))
        for seq, (nano, cost) in enumerate(parts, start=1)
    ]  # fmt: skip
    lots = lots_after(events)
    opened = revalued(lots, {"AKT": DatedRate("AKT", "USD", 0, "s", rate)}, {})
    assert [each.lot.left_nano for each in opened] == [nano for nano, _ in parts]
    worth = total(each.worth.usd_nano for each in opened)
    assert total(each.gain_nano for each in opened) == worth - sum(cost for _, cost in parts)
    assert abs(worth - int(sum(nano for nano, _ in parts) * rate)) <= len(parts)
    assert all(each.gain_nano is None for each in revalued([*lots, *[other()]], {}, {}))


def other() -> Lot:
    return Lot("NOS", 9, "EUR", 1, 1, 1, 1, 0)
