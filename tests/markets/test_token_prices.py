"""Prices of tokens are doubted as those of machines are, and remembered."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.database import Database
from markets import history, price_book
from markets.history import DAY_US
from markets.instants import micros
from markets.offer import Offer, TokenPrice
from markets.token_plausibility import TokenGround, implausible_tokens
from markets.tokens.card import card_offers
from markets.tokens.listing import TokenSaid, token_offer
from markets.tokens.source import shipped_card, shipped_cards

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)
NOTHING = TokenGround({}, {})


def tokens(
    price_in: str, price_out: str, *, market: str = "m", model: str = "org/Llama-70B", at: datetime = NOON
) -> Offer:
    said = TokenSaid(
        market=market, model=model, base_url="https://m/v1", input=Decimal(price_in), output=Decimal(price_out),
        source="test", raw={},
    )  # fmt: skip
    return token_offer(said, at)


async def store(book: Database, *offers: Offer, at: datetime = NOON) -> dict[str, str | None]:
    """What is held against each market's offer after this poll of it."""
    async with book.transaction() as session:
        for offer in offers:
            await price_book.store_offers(session, offer.market, [offer], now_us=micros(at))
        listed = await price_book.offers(session, now_us=micros(at), max_age_s={}, default_max_age_s=10**6)
    return {each.offer.market: each.offer.quarantined for each in listed}


@pytest.mark.parametrize(
    ("price_in", "price_out"),
    [
        ("0.0000005", "0.0000015"),  # OpenRouter's dollars a token, taken for dollars a million
        ("0.0005", "0.0015"),  # a price of a thousand
        ("500000", "1500000"),  # dollars a million multiplied once more
        ("0.5", "1500"),  # one of the two
    ],
)
def test_a_unit_that_was_misread_is_out_of_bounds(price_in: str, price_out: str) -> None:
    assert "outside of" in str(implausible_tokens(tokens(price_in, price_out), NOTHING))


async def test_a_price_far_from_what_three_others_ask_for_the_model_is_quarantined(book: Database) -> None:
    others = [tokens("0.6", "0.8", market=name, model=f"{name}/llama-70b") for name in "abc"]
    held = await store(book, *others, tokens("0.006", "0.008"))
    assert "below a tenth of 0.65, the median of 3 other markets" in str(held["m"])
    assert {held[name] for name in "abc"} == {None}
    assert (await store(book, tokens("0.2", "0.3")))["m"] is None, "a third of it is a price"
    assert (await store(book, tokens("0.006", "0.008", model="other")))["m"] is None, "nobody else sells that one"


async def test_a_jump_is_believed_when_the_market_says_it_again(book: Database) -> None:
    """And a quarantined price is none to compare with: it was never believed."""
    assert (await store(book, tokens("1", "4")))["m"] is None
    later = NOON + timedelta(hours=1)
    first = await store(book, tokens("0.1", "0.4", at=later), at=later)
    assert "input was 1 before" in str(first["m"])
    again = NOON + timedelta(hours=2)
    assert (await store(book, tokens("0.1", "0.4", at=again), at=again))["m"] is None


async def test_each_change_of_a_token_price_is_kept_and_rolled_up(book: Database) -> None:
    for hour, price in ((0, "4"), (1, "4"), (2, "3")):
        at = NOON + timedelta(hours=hour)
        await store(book, tokens("1", price, at=at), at=at)
    key = str(tokens("1", "4").key)
    async with book.transaction() as session:
        start, now_us = micros(NOON), micros(NOON + timedelta(days=100))
        told = await history.changes(session, key, from_us=start, to_us=now_us)
        assert [(each.input_nano, each.output_nano) for each in told] == [(10**9, 4 * 10**9), (10**9, 3 * 10**9)]
        assert await history.roll_up(session, now_us=now_us, keep_days=30, keep_rolled_days=400)
        (first, *_) = await history.days(session, key, from_us=start, to_us=start + DAY_US)
    assert (first.min_nano, first.max_nano, first.last_nano) == (3 * 10**9, 4 * 10**9, 3 * 10**9)
    assert first.mean_nano is not None and 3 * 10**9 < first.mean_nano < 4 * 10**9


async def test_the_shipped_cards_are_plausible_to_the_book(book: Database) -> None:
    """Bounds that would quarantine real list prices would quarantine live ones, too."""
    async with book.transaction() as session:
        for _ in range(2):
            for name in shipped_cards():
                offers = card_offers(shipped_card(name))
                await price_book.store_offers(session, name, offers, now_us=micros(NOON))
        listed = await price_book.offers(session, now_us=micros(NOON), max_age_s={}, default_max_age_s=10**9)
    assert listed
    assert [str(each.offer.quarantined) for each in listed if "implausible" in str(each.offer.quarantined)] == []


PRICES = st.decimals(min_value=Decimal("1e-9"), max_value=Decimal("1e9"), places=9)


@given(PRICES, PRICES, PRICES, PRICES)
def test_what_is_believed_of_tokens_is_in_bounds_and_near_what_it_was(
    a: Decimal, b: Decimal, c: Decimal, d: Decimal
) -> None:
    offer = tokens(str(a), str(b))
    reason = implausible_tokens(offer, TokenGround({str(offer.key): TokenPrice(c, d)}, {}))
    if offer.quarantined is None and reason is None:
        assert Decimal("0.001") <= min(a, b) and max(a, b) <= 1000
        assert max(a / c, c / a, b / d, d / b) <= 8
