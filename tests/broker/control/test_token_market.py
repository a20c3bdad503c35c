"""What a batch costs where tokens are sold, beside renting; and when buying wins."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest

from broker.control.token_market import advise, beside
from markets.offer import Offer
from markets.price_book import Listed
from markets.tokens.listing import TokenSaid, token_offer
from solver.residency import INTERNAL, compile_countries
from solver.types import Work

AT = datetime(2026, 11, 22, tzinfo=UTC)
NOW_US = 1_795_300_000_000_000
WORK = Work(
    id="quote", project="p", model="m", precision="bf16", endpoint="/v1/chat/completions", lines=1000,
    input_tokens=1_000_000, output_tokens_p50=500_000, output_tokens_p90=1_000_000, deadline_us=NOW_US + 1,
    max_nano=None, priority=0, policy_hash="h",
)  # fmt: skip


def sold(market: str, given: str, written: str, **more: Any) -> Offer:
    said = TokenSaid(
        market=market, model="meta-llama/llama-3.3-70b-instruct", base_url="https://api.example/v1",
        input=Decimal(given), output=Decimal(written), source="list", raw={}, **more,
    )  # fmt: skip
    return token_offer(said, AT)


def listed(*offers: Offer) -> list[Listed]:
    return [Listed(offer=each, seen_at=AT, excluded=None, unlocated=None) for each in offers]


def test_the_price_of_the_tokens_is_exact_and_the_cheapest_comes_first() -> None:
    offers = listed(sold("dear", "0.20", "0.80"), sold("cheap", "0.10", "0.32"), sold("other", "0.01", "0.01"))
    offers[2] = replace(offers[2], offer=token_offer(said_of("gpt-x"), AT))
    found = beside(offers, {"meta-llama/Llama-3.3-70B-Instruct"}, WORK, INTERNAL, NOW_US)
    assert [each.usd for each in found] == ["0.26", "0.6"]
    assert found[0].usd_p90 == "0.42"
    assert found[0].usd_per_million_tokens == "0.173333333"


def test_where_the_policy_does_not_allow_it_nothing_is_bought() -> None:
    """Class `internal` allows token APIs only by an explicit opt-in (C5)."""
    found = beside(listed(sold("cheap", "0.10", "0.32")), {"llama-3.3-70b-instruct"}, WORK, INTERNAL, NOW_US)
    assert [(each.allowed, bool(each.reason)) for each in found] == [(False, True)]
    assert advise("5", found)[0] == "rent"
    assert advise(None, found)[0] == "none"
    german = beside(
        listed(sold("cheap", "0.10", "0.32")), {"llama-3.3-70b-instruct"}, WORK, compile_countries(["DE"]), NOW_US
    )
    assert not german[0].allowed


@pytest.mark.parametrize(("rented", "word"), [("5", "buy_tokens"), ("0.2", "rent"), (None, "buy_tokens")])
def test_buying_is_advised_where_it_is_allowed_and_costs_less(rented: str | None, word: str) -> None:
    found = beside(listed(sold("cheap", "0.10", "0.32")), {"llama-3.3-70b-instruct"}, WORK, INTERNAL, NOW_US)
    allowed = [each.model_copy(update={"allowed": True, "reason": None}) for each in found]
    assert advise(rented, allowed)[0] == word


def test_a_price_in_another_currency_is_told_and_not_compared() -> None:
    found = beside(
        listed(sold("euro", "0.10", "0.32", currency="EUR")), {"llama-3.3-70b-instruct"}, WORK, INTERNAL, NOW_US
    )
    assert not found[0].allowed
    assert "EUR" in (found[0].reason or "")


def said_of(model: str) -> TokenSaid:
    return TokenSaid(
        market="other",
        model=model,
        base_url="https://api.example/v1",
        input=Decimal(1),
        output=Decimal(1),
        source="l",
        raw={},
    )
