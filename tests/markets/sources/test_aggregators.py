"""Shadeform and Prime Intellect: other clouds' machines, their prices and their places, and never one machine twice."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import pytest

from markets.hourly import FxRate
from markets.offer import Offer
from markets.provider.shape import Shape, read
from markets.sources.prime_intellect import prime_offers
from markets.sources.resold import Direct, country_said
from markets.sources.shadeform import shadeform_offers
from tests.markets.sources.case_prime_intellect import DISK, item
from tests.markets.sources.case_shadeform import TYPES, kind

NOON = datetime(2026, 11, 27, 12, tzinfo=UTC)
EUR = {"EUR": FxRate("EUR", Decimal("1.10"), date(2026, 11, 26), "ECB")}


def said(value: Any) -> Shape:
    return read(json.dumps(value).encode(), "test")


def shadeform(*types: dict[str, Any], direct: Direct | None = None) -> list[Offer]:
    return shadeform_offers(said({"instance_types": list(types)}), NOON, direct or Direct())


def prime(*items: dict[str, Any], direct: Direct | None = None, fx: Any = EUR) -> list[Offer]:
    return prime_offers([said(each) for each in items], NOON, direct or Direct(), fx)


def test_shadeform_asks_cents_and_for_the_whole_machine() -> None:
    eight = next(each for each in shadeform(*TYPES) if each.accelerator.count == 8)
    assert eight.price == Decimal("23.92")


def test_shadeform_lists_what_is_sold_out_with_capacity_0() -> None:
    by_region = {each.key.region: each.capacity for each in shadeform(TYPES[0])}
    assert by_region == {"canada-1": None, "oslo-norway-1": 0}


@pytest.mark.parametrize("offers", [shadeform, prime])
def test_a_machine_that_its_own_market_offers_too_is_not_counted_twice(offers: Any) -> None:
    row = TYPES[2] if offers is shadeform else item("a", "A100_80GB", 1, 80, {"onDemand": 1.2}, provider="lambdalabs")
    (alone,) = offers(row)
    (twice,) = offers(row, direct=Direct(frozenset({"lambda"})))
    assert alone.quarantined is None
    assert "the market 'lambda'" in (twice.quarantined or "") and twice.price == alone.price
    (other,) = offers(row, direct=Direct(frozenset({"vultr"})))
    assert other.quarantined is None


@pytest.mark.parametrize(
    ("display", "region", "country"),
    [
        ("US, Wichita, KS", "us-central-1", "US"),
        ("Toronto, Canana", "canada-1", "CA"),  # the official document's own example
        ("Toronto, Canana", "toronto-1", None),
        ("CA, Los Angeles", "los-angeles-1", None),  # California or Canada?
        ("DE, Wilmington", "wilmington-1", None),  # Delaware or Germany?
        ("CA, Montreal", "montreal-canada-2", "CA"),
        ("Oslo, Norway", "oslo-norway-1", "NO"),
        ("Paris, France", "oslo-norway-1", None),  # one of the two is wrong
        ("Newark", "new-jersey-1", None),
        ("Tbilisi, Georgia", "tbilisi-1", None),  # or Georgia's Tbilisi Avenue
        ("EU, somewhere", "eu-1", None),
        ("", "", None),
    ],
)
def test_a_country_is_read_only_where_nothing_else_can_be_meant(display: str, region: str, country: str | None) -> None:
    assert country_said(display, region) == country


def test_prime_asks_community_prices_in_community_clouds_and_never_the_other() -> None:
    both = {"communityPrice": 0.32, "onDemand": 0.74}
    community, secure = prime(
        item("a", "RTX4090_24GB", 1, 24, both, security="community_cloud", socket="PCIe"),
        item("b", "RTX4090_24GB", 1, 24, both, security="secure_cloud", socket="PCIe"),
    )
    assert (community.price, secure.price) == (Decimal("0.32"), Decimal("0.74"))
    assert (community.location_tier, secure.location_tier) == ("claimed", "named_datacenter")


def test_prime_euros_become_dollars_at_a_dated_rate_or_no_price_at_all() -> None:
    row = item("a", "L40S_48GB", 1, 48, {"onDemand": 1.0, "currency": "EUR"}, socket="PCIe")
    (known,) = prime(row)
    assert (known.price, known.currency) == (Decimal("1.10"), "USD")
    assert "2026-11-26" in known.raw["fx"]
    (unknown,) = prime(row, fx={})
    assert unknown.price is None and "EUR" in (unknown.quarantined or "")


def test_prime_disk_that_is_not_included_is_in_the_price() -> None:
    (paid,) = prime(item("a", "H100_80GB", 1, 80, {"onDemand": 2.0}, disk=DISK))
    assert paid.price == Decimal("2.02") and paid.components["disk"] == Decimal("0.02")
    (free,) = prime(item("a", "H100_80GB", 1, 80, {"onDemand": 2.0}, disk=DISK | {"defaultIncludedInPrice": True}))
    assert free.price == 2


def test_prime_an_extra_never_makes_a_price_of_none() -> None:
    (unpriced,) = prime(item("a", "H100_80GB", 1, 80, {"onDemand": None}, disk=DISK))
    assert unpriced.price is None and unpriced.quarantined


def test_prime_prepaid_hours_are_paid_whatever_is_used() -> None:
    (prepaid,) = prime(item("a", "H100_80GB", 8, 80, {"onDemand": 16}, prepaidTime=24))
    assert (prepaid.minimum_s, prepaid.refundable_fraction) == (86_400, 0)


def test_prime_a_country_that_is_none_is_unknown() -> None:
    for country in ("Atlantis", "XX", "", "europe"):
        (lost,) = prime(item("a", "H100_80GB", 1, 80, {"onDemand": 2.0}, country=country))
        assert (lost.country, lost.evidence, lost.location_tier) == (None, (), "anonymous")


def test_an_accelerator_that_nobody_knows_is_listed_and_never_chosen() -> None:
    (strange,) = shadeform(kind("denvr", "X", "LPU9000", 1, 80, 200, "pcie", ("r", True, "US, Dallas, TX")))
    assert "LPU9000" in (strange.quarantined or "") and strange.accelerator.kind == "none"
