"""The house's accounts over the API: who sees that the login is another's, and the door by which an account is given up."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from urllib.parse import quote

import pytest

from broker.house_accounts import HouseAccounts
from jobs.clock import db_now
from markets import price_book, rentals
from markets.errors import AccountChanged
from markets.held_account import HeldMarket
from markets.offer import Accelerator, Offer, OfferKey
from tests.support.lock_watch import watch_locks


async def _exchanged(server: Any, market: str = "aws") -> HouseAccounts:
    """A machine runs in 111, and the login is of 222."""
    accounts = HouseAccounts(server.services.database)
    await accounts.hold(market, "111")
    async with server.services.database.transaction() as session:
        await rentals.record_intent(
            session, rental_id="rental_1", offer=_offer(market), project="default", model="m", precision="auto", purpose={},
            now_us=1,
        )  # fmt: skip
    with pytest.raises(AccountChanged, match=rf"111, and the login is of 222.*give-up {market} 111"):
        await accounts.hold(market, "222")
    return accounts


@dataclass
class Nowhere:
    name: str


def _offer(market: str) -> Offer:
    return Offer(
        key=OfferKey(market, "eu-central-1", None, "g5.xlarge", "a10g", 1, "spot"),
        launch="vm",
        accelerator=Accelerator(),
        currency="USD",
        price=Decimal("0.5"),
        observed_at=datetime.now(UTC),
        source="test",
        raw_sha256="",
    )


async def _explained(server: Any) -> dict[str, Any]:
    key = quote(str(_offer("aws").key), safe="")
    return dict((await server.call("GET", f"/v1/market/offers/explain?key={key}")).json)


async def test_a_login_of_another_account_is_said_where_an_operator_looks(server: Any) -> None:
    server.services.markets["aws"] = Nowhere("aws")
    accounts = await _exchanged(server)
    async with server.services.database.transaction() as session:
        await price_book.store_offers(session, "aws", [_offer("aws")], now_us=await db_now(session))
    (market,) = [e for e in (await server.call("GET", "/v1/markets")).json["data"] if e["name"] == "aws"]
    assert (market["renting"], "the login is of 222" in market["reason"]) == (False, True)
    told = await _explained(server)
    assert (told["may_be_chosen"], "the login is of 222" in told["reason"]) == (False, True), "it was said to be rented"
    (held,) = (await server.call("GET", "/v1/admin/house-accounts")).json["data"]
    assert (held["account"], held["other"], "give-up aws 111" in held["reason"]) == ("111", "222", True)
    await accounts.hold("aws", "111")
    assert (await _explained(server))["may_be_chosen"]
    (held,) = (await server.call("GET", "/v1/admin/house-accounts")).json["data"]
    assert (held["account"], held["other"], held["reason"]) == ("111", None, None)


async def test_the_doctor_and_a_metric_say_so_of_the_markets_that_are_rented_at(server: Any) -> None:
    def metric(text: bytes) -> list[str]:
        return [line for line in text.decode().splitlines() if line.startswith("broker_market_account_changed{")]

    server.services.markets["sandbox"] = HeldMarket(Nowhere("sandbox"), HouseAccounts(server.services.database).hold)

    async def check() -> dict[str, Any]:
        checks = (await server.call("GET", "/v1/doctor")).json["checks"]
        return next(each for each in checks if each["name"] == "the house's account at sandbox")

    assert ((await check())["ok"], "not known yet" in (await check())["found"]) == (False, True)
    accounts = await _exchanged(server, "sandbox")
    told = await check()
    assert (told["ok"], "machines run in 111, the login is of 222" in told["found"]) == (False, True)
    assert "give-up sandbox 111" in told["mend"]
    answer = await server.call("GET", "/metrics", headers={"Accept": "text/plain"})
    assert metric(answer.raw) == ['broker_market_account_changed{market="sandbox"} 1.0']
    await accounts.hold("sandbox", "111")
    assert ((await check())["ok"], (await check())["found"]) == (True, "held to 111")
    answer = await server.call("GET", "/metrics", headers={"Accept": "text/plain"})
    assert metric(answer.raw) == ['broker_market_account_changed{market="sandbox"} 0.0']


async def test_an_account_is_given_up_by_its_number_and_once(server: Any) -> None:
    await _exchanged(server)
    path = "/v1/admin/house-accounts/aws/give-up"
    for body in ({}, {"account": ""}, {"account": "111", "sure": True}):
        assert (await server.call("POST", path, json=body)).status == 400
    wrong = await server.call("POST", path, json={"account": "222"})
    assert (wrong.status, wrong.json["error"]["code"]) == (422, "not_given_up")
    assert "is 111, not 222" in wrong.json["error"]["message"]
    with watch_locks(server.services.database.engine) as locks:
        given_up = await server.call("POST", path, json={"account": "111"})
    assert "ledger_head" in locks.seen, "or an intent would be written while the machines are counted"
    assert (given_up.status, given_up.json["account"], given_up.json["before"]) == (200, "222", "111")
    (held,) = (await server.call("GET", "/v1/admin/house-accounts")).json["data"]
    assert held == given_up.json and held["given_up_by"], "who did it stays written"
    again = await server.call("POST", path, json={"account": "222"})
    assert (again.status, "no login of another account" in again.json["error"]["message"]) == (422, True)
    missing = await server.call("POST", "/v1/admin/house-accounts/gcp/give-up", json={"account": "1"})
    assert missing.status == 404


async def test_the_houses_accounts_are_the_houses(server: Any) -> None:
    await _exchanged(server)
    theirs = await server.key("admin", "operator", project="theirs")
    assert (await server.call("GET", "/v1/admin/house-accounts", key=theirs)).status == 404
    body = {"account": "111"}
    answer = await server.call("POST", "/v1/admin/house-accounts/aws/give-up", key=theirs, json=body)
    assert answer.status == 404
    operator = await server.key("operator", project=None)
    assert (await server.call("GET", "/v1/admin/house-accounts", key=operator)).status == 200
    answer = await server.call("POST", "/v1/admin/house-accounts/aws/give-up", key=operator, json=body)
    assert answer.status == 403, "money that nobody can stop any more is an administrator's decision"
