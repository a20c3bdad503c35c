"""A token endpoint's invoice names models, not rentals: what was booked is found in it, and what differs says why."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest

from jobs.clock import db_now
from markets import price_book
from markets.offer import TokenPrice
from tests.support.endpoint_wire import THEIRS, book, buying, endpoint
from tests.support.wire_agent import Rent

OCTETS = {"Content-Type": "application/octet-stream"}
PERIOD = datetime.now(UTC).strftime("%Y-%m")
# Four answers of 7 tokens in and 5 out, at $1000 and $10000 a million.
BOOKED, TOKENS = Decimal("0.228"), 48
COLUMNS = '{"resource":"model","amount":"cost","tokens":"tokens"}'


@pytest.fixture
async def bought(server: Any, rent: Rent) -> Any:
    """The books of one executor that answered four lines."""
    agent, _ = await buying(server, rent)
    lease = (await agent.lease())["lease"]
    assert (await agent.work(lease, range(0, 4))).json["outcome"] == "committed"
    await book(server)
    return server


async def send(server: Any, *rows: tuple[str, str, str], trial: bool = False) -> Any:
    text = "model,cost,tokens\n" + "".join(",".join(row) + "\n" for row in rows)
    asked = f"provider=near&form=csv&period={PERIOD}&columns={COLUMNS}&trial={str(trial).lower()}"
    answer = await server.call("POST", f"/v1/ledger/invoices?{asked}", data=text.encode(), headers=OCTETS)
    assert answer.status == 200, answer.raw
    return answer.json


async def test_what_was_booked_matches_an_invoice_by_model_to_the_nano(bought: Any) -> None:
    """All of it lay in suspense as `unknown_resource`, and the accrual was listed as not billed."""
    told = await send(bought, (THEIRS, "0.028", "28"), (THEIRS.upper(), "0.2", "20"))
    assert (told["billed_usd"], told["accrued_usd"], told["matched"]) == ("0.228", "0.228", 1)
    assert (told["variances"], told["not_billed"], told["exceptions"]) == ([], [], [])
    books = (await bought.call("GET", "/v1/ledger/entries?limit=1")).json
    assert books["balanced"], books["findings"]
    assert books["balances"].get("Liabilities:Accrued:Near", "0") == "0"
    assert books["balances"]["Liabilities:Payable:Near"] == "-0.228"


async def test_what_was_used_since_is_matched_to_the_months_next_invoice(server: Any, rent: Rent) -> None:
    agent, _ = await buying(server, rent)
    lease = (await agent.lease())["lease"]
    await agent.work(lease, range(0, 1))
    await book(server)
    assert (await send(server, (THEIRS, "0.057", "12")))["variances"] == []
    await agent.work(lease, range(1, 4), 1)
    await book(server)
    told = await send(server, (THEIRS, "0.171", "36"))
    assert (told["variances"], told["accrued_usd"]) == ([], "0.171")
    assert (await send(server, (THEIRS, "0.17", "36"), trial=True))["variances"][0]["code"] == "billed_twice"


@pytest.mark.parametrize(
    ("cost", "tokens", "code", "says"),
    [
        ("2.28", "48", "price_moved", "a million tokens"),  # ten times the card
        ("2.28", "", "price_moved", "the card's price now"),  # the same, of a bill that counts no tokens
        ("0.456", "96", "more_tokens", "48 tokens more"),  # cut off requests, another who uses the key
        ("0.114", "24", "fewer_tokens", "24 tokens less"),
        ("0.7", "", "unexplained", "counts no tokens"),
        ("0.229", "48", "rounding", "rounding"),
    ],
)
async def test_a_difference_of_tokens_is_named(bought: Any, cost: str, tokens: str, code: str, says: str) -> None:
    dearer = endpoint(TokenPrice(Decimal(10_000), Decimal(100_000), Decimal(5_000)))
    async with bought.services.database.transaction() as session:
        await price_book.store_offers(session, "near", [dearer], now_us=await db_now(session))
    [found] = (await send(bought, (THEIRS, cost, tokens), trial=True))["variances"]
    assert (found["code"], found["subject"]) == (code, THEIRS), found
    assert says in found["explanation"], found
    assert sum(Decimal(found[part]) for part in ("time_usd", "price_usd", "rest_usd")) == Decimal(cost) - BOOKED
