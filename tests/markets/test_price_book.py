"""The price book: old prices are seen to be old, unknown prices are never free, nothing vanishes silently."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.database import Database
from markets import price_book
from markets.errors import BadOffer
from markets.instants import micros
from markets.offer import Accelerator, Evidence, Offer, OfferKey, TokenPrice
from markets.offer_record import offer_from_record, record_from_offer

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)
NOON_US = micros(NOON)
HERE = Evidence("region_table", "test", NOON, timedelta(days=1))


def offer(sku: str = "a", price: str | None = "1.50", observed_at: datetime = NOON) -> Offer:
    return Offer(
        key=OfferKey("m", "eu", None, sku, "h100", 1, "spot"),
        launch="vm",
        accelerator=Accelerator("nvidia", "h100", "sxm", 81_559, 1),
        currency="USD",
        price=None if price is None else Decimal(price),
        observed_at=observed_at,
        source="test",
        raw_sha256="00",
        country="DE",
        evidence=(HERE,),
    )


async def book_of(book: Database, *, at: datetime = NOON, max_age_s: int = 300) -> dict[str, price_book.Listed]:
    async with book.transaction() as session:
        listed = await price_book.offers(session, now_us=micros(at), max_age_s={"m": max_age_s}, default_max_age_s=1)
    return {each.offer.key.sku: each for each in listed}


async def store(book: Database, *offers: Offer, at: datetime = NOON) -> price_book.Stored:
    async with book.transaction() as session:
        return await price_book.store_offers(session, "m", offers, now_us=micros(at))


async def test_an_offer_comes_back_as_it_was(book: Database) -> None:
    await store(book, offer())
    listed = (await book_of(book))["a"]
    assert (listed.offer, listed.excluded, listed.unlocated) == (offer(), None, None)


async def test_stale_price_shown_as_fresh_cannot_happen_when_polls_fail(book: Database) -> None:
    await store(book, offer())
    later = NOON + timedelta(minutes=6)
    async with book.transaction() as session:
        await price_book.poll_failed(session, "m", error="Unavailable", now_us=micros(later))
    listed = (await book_of(book, at=later))["a"]
    assert listed.excluded is not None and "stale" in listed.excluded and "360 s ago" in listed.excluded
    async with book.transaction() as session:
        assert [(poll.error, poll.ok_us) for poll in await price_book.polls(session)] == [("Unavailable", NOON_US)]


async def test_a_poll_that_repeats_an_old_observation_does_not_refresh_it(book: Database) -> None:
    later = NOON + timedelta(minutes=6)
    await store(book, offer())
    await store(book, offer(observed_at=NOON), at=later)  # a cache answered, not the market
    assert "stale" in ((await book_of(book, at=later))["a"].excluded or "")


async def test_an_answer_that_was_overtaken_does_not_undo_a_newer_one(book: Database) -> None:
    await store(book, offer(price="2", observed_at=NOON + timedelta(seconds=5)))
    await store(book, offer(price="1", observed_at=NOON))
    assert (await book_of(book))["a"].offer.price == 2


@pytest.mark.parametrize(
    "price",
    [
        "0",  # vast and azure list 0 when they do not know
        "0.00",
        "-1",
        None,  # empty
        "NaN",
    ],
)
async def test_price_0_is_unknown_never_free(book: Database, price: str | None) -> None:
    stored = await store(book, offer(price=price))
    assert stored.quarantined == 1
    assert "unknown" in ((await book_of(book))["a"].excluded or "")


async def test_a_quarantined_offer_returns_with_a_positive_price(book: Database) -> None:
    await store(book, offer(price="0"))
    await store(book, offer(price="1", observed_at=NOON + timedelta(seconds=1)))
    assert (await book_of(book))["a"].excluded is None


async def test_an_offer_that_is_no_longer_listed_stays_with_the_reason(book: Database) -> None:
    await store(book, offer("a"), offer("b"))
    assert (await store(book, offer("b"))).gone == 1
    listed = await book_of(book)
    assert "no longer listed" in (listed["a"].excluded or "")
    assert listed["b"].excluded is None
    await store(book, offer("a"), offer("b"))
    assert (await book_of(book))["a"].excluded is None


async def test_sold_out_is_data(book: Database) -> None:
    await store(book, replace(offer(), capacity=0))
    listed = (await book_of(book))["a"]
    assert (listed.offer.capacity, listed.excluded) == (0, None)


async def test_unlocated_offers_are_flagged(book: Database) -> None:
    old = replace(HERE, observed_at=NOON - timedelta(days=2))
    await store(book, replace(offer("none"), country=None), replace(offer("old"), evidence=(old,)))
    listed = await book_of(book)
    assert "country is unknown" in (listed["none"].unlocated or "")
    assert "no current evidence" in (listed["old"].unlocated or "")


async def test_a_key_listed_twice_is_the_adapters_fault_and_is_said_so(book: Database) -> None:
    with pytest.raises(ValueError, match="listed twice"):
        await store(book, offer(), offer())


@pytest.mark.parametrize(
    ("markets", "is_doubted"),
    [
        (("aws", "aws~acme", "aws~bravo"), False),
        (("aws", "aws~acme", "gcp"), False),
        (("m~acme", "gcp", "aws"), False),  # what is judged is no other market either
        (("aws", "gcp", "azure"), True),
    ],
)
async def test_a_cheap_seller_was_quarantined_because_one_provider_in_three_accounts_was_three_markets(
    book: Database, markets: tuple[str, ...], is_doubted: bool
) -> None:
    dear = offer(price="9.00")
    for market in markets:
        async with book.transaction() as session:
            listed = replace(dear, key=replace(dear.key, market=market))
            await price_book.store_offers(session, market, [listed], now_us=NOON_US)
    await store(book, offer(price="1.50"))
    excluded = (await book_of(book))["a"].excluded
    assert ("below a fifth" in (excluded or "")) == is_doubted


def test_a_record_that_lacks_a_field_says_which() -> None:
    record = record_from_offer(offer())
    del record["capacity"]
    with pytest.raises(BadOffer, match="capacity"):
        offer_from_record(record)


amounts = st.decimals(min_value=0, max_value=10_000, allow_nan=False, places=12)


@st.composite
def offers(draw: st.DrawFn) -> Offer:
    price, text, seconds = draw(st.none() | amounts), draw(st.text(max_size=20)), draw(st.integers(0, 10**9))
    return replace(
        offer(),
        price=price,
        components={text: draw(amounts)},
        per_million=TokenPrice(draw(amounts), draw(amounts), price),
        accelerator=Accelerator("amd", text or "x", None, seconds, 8, draw(amounts)),
        observed_at=NOON + timedelta(microseconds=seconds),
        evidence=(Evidence(text, text, NOON, timedelta(seconds=seconds)),),
        interruption_per_hour=price,
        boot_s=seconds,
        operator=text,
        jurisdictions=draw(st.none() | st.lists(st.sampled_from(["DE", "US"])).map(tuple)),
        data_policy={"retention": text},
        quarantined=text,
    )


@given(offers())
def test_any_offer_survives_its_record(whole: Offer) -> None:
    assert offer_from_record(record_from_offer(whole)) == whole
