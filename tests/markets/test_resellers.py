"""Machines that two aggregators sell are counted once: where they are cheapest."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.database import Database
from markets import price_book
from markets.instants import micros
from markets.offer import Accelerator, Evidence, Offer, OfferKey
from markets.resellers import cheaper_elsewhere, gathered

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)


def offer(
    market: str,
    price: str,
    *,
    operator: str = "Hyperstack",
    region: str | None = "canada-1",
    zone: str | None = None,
    country: str | None = "CA",
    count: int = 8,
    at: datetime = NOON,
) -> Offer:
    return Offer(
        key=OfferKey(market, region, zone, f"{operator}/x", "h100-sxm", count, "on_demand"),
        launch="vm",
        accelerator=Accelerator("nvidia", "h100-sxm", "sxm", 81_920, count),
        currency="USD",
        price=Decimal(price),
        observed_at=at,
        source="test",
        raw_sha256="00",
        country=country,
        operator=operator,
        evidence=(Evidence("host_claim", "test", at, timedelta(days=1)),) if country else (),
    )


async def poll(book: Database, market: str, *offers: Offer, at: datetime = NOON) -> dict[str, str | None]:
    async with book.transaction() as session:
        await price_book.store_offers(session, market, offers, now_us=micros(at))
        listed = await price_book.offers(session, now_us=micros(at), max_age_s={}, default_max_age_s=10**6)
    return {each.offer.market: each.excluded for each in listed}


async def test_machines_that_two_aggregators_sell_count_where_they_are_cheapest(book: Database) -> None:
    await poll(book, "shadeform", offer("shadeform", "19.92"))
    prime = offer("prime-intellect", "21", operator="hyperstack", region="canada", zone="CANADA-1")
    held = await poll(book, "prime-intellect", prime)
    assert held["shadeform"] is None
    assert "sold at 19.92 USD an hour as shadeform/canada-1" in str(held["prime-intellect"])
    # whoever becomes the cheaper one counts from the next poll of each on
    await poll(book, "prime-intellect", replace(prime, price=Decimal("18")))
    held = await poll(book, "shadeform", offer("shadeform", "19.92"))
    assert held["prime-intellect"] is None and "sold at 18" in str(held["shadeform"])


async def test_an_aggregator_that_sells_no_longer_stands_against_nobody(book: Database) -> None:
    await poll(book, "shadeform", offer("shadeform", "19.92"))
    assert (await poll(book, "prime-intellect", offer("prime-intellect", "21")))["prime-intellect"]
    await poll(book, "shadeform")
    assert (await poll(book, "prime-intellect", offer("prime-intellect", "21")))["prime-intellect"] is None
    await poll(book, "shadeform", offer("shadeform", "19.92"))
    later = NOON + timedelta(hours=2)  # shadeform has not answered for two hours
    assert (await poll(book, "prime-intellect", offer("prime-intellect", "21", at=later), at=later))[
        "prime-intellect"
    ] is None


@pytest.mark.parametrize(
    "other",
    [
        offer("prime-intellect", "21", operator="Nebius"),
        offer("prime-intellect", "21", count=4),
        offer("prime-intellect", "21", country="US"),
        offer("prime-intellect", "21", country=None),  # nobody can tell
        offer("prime-intellect", "21", region="canada-2"),  # another site of the same operator is other room
    ],
)
def test_other_machines_are_other_room(other: Offer) -> None:
    assert cheaper_elsewhere(other, gathered([offer("shadeform", "19.92")])) is None


PRICES = st.decimals("0.01", "100", places=2)


@given(PRICES, PRICES)
def test_of_two_sellers_exactly_one_counts(a: Decimal, b: Decimal) -> None:
    one, two = offer("shadeform", str(a)), offer("prime-intellect", str(b))
    assert (cheaper_elsewhere(one, gathered([two])) is None) != (cheaper_elsewhere(two, gathered([one])) is None)
