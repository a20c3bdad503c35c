"""Integrity of the data itself: the shipped snapshot, and other people's price files, go through the same eyes as live answers.

The traps are those that the files really hold; the reference data is outside of the repository (BROKER_REFERENCE).
"""

from __future__ import annotations

import csv
import gzip
import json
import os
from collections import defaultdict
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from broker.database import Database
from markets import price_book
from markets.cards.rate_card import Card, read_card
from markets.cards.snapshot import by_market, snapshot
from markets.facts.accelerators import chips, identify
from markets.facts.regions import country_code, region_of_zone, regions
from markets.instants import micros
from markets.offer import Offer, OfferKey, price_problem
from markets.price_search import Wanted
from markets.provider.shape import Shape
from markets.sources.openrouter import openrouter_offers

NOW = datetime(2026, 11, 27, tzinfo=UTC)
REFERENCE = os.environ.get("BROKER_REFERENCE")
reference = pytest.mark.skipif(REFERENCE is None, reason="the reference data is not here (BROKER_REFERENCE)")
PRICES = Path(REFERENCE or ".") / "data" / "prices"


def rows(name: str, delimiter: str = ",") -> list[dict[str, str]]:
    file = PRICES / name
    with gzip.open(file, "rt") if name.endswith(".gz") else file.open() as lines:
        return list(csv.DictReader(lines, delimiter=delimiter))


def check(offers: list[Offer]) -> None:
    """What must hold of any offer that may be chosen."""
    for offer in offers:
        assert OfferKey.parse(str(offer.key)) == offer.key
        if offer.quarantined is None:
            assert offer.price is not None and offer.price.is_finite() and offer.price > 0, offer.key
            assert offer.currency == "USD" and price_problem(offer) is None, offer.key
            assert offer.price == sum(offer.components.values()), offer.key
            assert offer.accelerator.name in chips() or offer.accelerator.kind == "none", offer.key
        assert (offer.country is None) == (not offer.evidence), offer.key
        assert offer.country is None or country_code(offer.country) == offer.country, offer.key


# --- the snapshot ----------------------------------------------------------------------------------------------------


def test_the_snapshot_is_whole() -> None:
    offers = list(snapshot())
    check(offers)
    assert len(offers) >= 300
    assert len({str(offer.key) for offer in offers}) == len(offers)
    assert all(offer.source.startswith("snapshot: ") and offer.observed_at < NOW for offer in offers)
    assert not any(offer.quarantined for offer in offers)


async def test_the_snapshot_is_plausible_to_the_book(book: Database) -> None:
    """Bounds that would quarantine real list prices would quarantine live ones, too."""
    async with book.transaction() as session:
        for market, offers in by_market().items():
            await price_book.store_offers(session, market, offers, now_us=micros(NOW))
        listed = await price_book.offers(session, now_us=micros(NOW), max_age_s={}, default_max_age_s=10**9)
    assert [each.excluded for each in listed if each.excluded] == []


def test_gcp_is_priced_only_where_the_device_exists() -> None:
    """The calculator prices every machine in every region: the naive L4 spot minimum is 0.077 USD, the true one
    0.27 of 2026-07, 0.19 of this snapshot's week."""
    per_gpu = {
        name: min(
            offer.price / offer.accelerator.count
            for offer in by_market()["gcp"]
            if offer.price and offer.pricing == "spot" and offer.accelerator.name == name
        )
        for name in ("l4", "h100-sxm")
    }
    assert per_gpu["l4"] > Decimal("0.15") and per_gpu["h100-sxm"] > Decimal("1.2"), per_gpu


# --- cards in other people's columns ---------------------------------------------------------------------------------

GPUHUNT = """instance_name,location,price,cpu,memory,gpu_count,gpu_name,gpu_memory,spot,disk_size,gpu_vendor
p4d.24xlarge,us-east-1,21.96,96,1152,8,A100,40,False,,nvidia
p4d.24xlarge,us-east-1,7.1,96,1152,8,A100,40,True,,nvidia
m5.large,eu-west-2,0.1,2,8,0,,,False,,
"""
SKYPILOT = """InstanceType,AcceleratorName,AcceleratorCount,vCPUs,MemoryGiB,Price,Region,GpuInfo,SpotPrice,AvailabilityZone
gpu_1x,H100-SXM,1,26,225,2.99,eu-central-1,x,0.00,
gpu_8x,H100-SXM,8,208,1800,23.92,eu-central-1,x,9.5,
"""


def card(text: str, provider: str = "aws") -> Card:
    return read_card(text, market="mine", observed_at=NOW, source="test", provider=provider)


def test_gpuhunts_columns_are_read() -> None:
    found = card(GPUHUNT)
    assert (found.dialect, found.findings) == ("gpuhunt", ())
    assert [(o.key.sku, o.accelerator.name, o.pricing, o.country) for o in found.offers] == [
        ("p4d.24xlarge", "a100-40", "on_demand", "US"),
        ("p4d.24xlarge", "a100-40", "spot", "US"),
        ("m5.large", "cpu", "on_demand", "GB"),  # London is not the European Union
    ]


def test_skypilots_columns_are_read_and_a_spot_price_of_0_is_no_offer() -> None:
    found = card(SKYPILOT)
    assert (found.dialect, found.findings) == ("skypilot", ())
    assert [(o.key.sku, o.pricing, str(o.price)) for o in found.offers] == [
        ("gpu_1x", "on_demand", "2.99"),
        ("gpu_8x", "on_demand", "23.92"),
        ("gpu_8x", "spot", "9.5"),
    ]


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("x,L4,1,abc,USD", None),  # unknown, listed and quarantined
        ("x,L4,1,0,USD", None),
        ("x,L4,1,5,EUR", None),  # no rate
        (",L4,1,1,USD", "sku"),
        ("x,L4,many,1,USD", "number"),
        ("x,L4,-1,1,USD", "number"),
        ("x,L4,1,1,USD,too,many,columns", "columns"),
    ],
)
def test_a_line_is_an_offer_a_quarantined_offer_or_a_finding(line: str, code: str | None) -> None:
    found = card(f"sku,gpu,gpu_count,price,currency\n{line}\n")
    assert [each.code for each in found.findings] == ([code] if code else [])
    assert all(offer.quarantined for offer in found.offers) and len(found.offers) == (code is None)


def test_a_card_without_a_known_header_says_what_it_should_have() -> None:
    (finding,) = card("a,b\n1,2\n").findings
    assert finding.code == "header" and "instance_name" in finding.message


# --- the reference data ----------------------------------------------------------------------------------------------


@reference
async def test_per_gpu_prices_among_per_instance_ones_are_caught(book: Database) -> None:
    """`neocloud_list_2026-02-11.csv`: denvr's price_per_hour is of one GPU although gpu_count is 8; other markets tell."""
    lines = ["sku,gpu,gpu_count,gpu_memory_gib,price,currency"]
    for number, row in enumerate(rows("neocloud_list_2026-02-11.csv")):
        if row["provider"] == "denvr" and row["price_per_hour_usd"]:
            count, memory = int(float(row["gpu_count"])), int(float(row["vram_gb"]))
            lines.append(f"d{number},{row['product']},{count},{memory},{row['price_per_hour_usd']},USD")
    read = read_card("\n".join(lines), market="denvr", observed_at=NOW, source="test")
    check(list(read.offers))
    async with book.transaction() as session:
        for market, offers in by_market().items():
            await price_book.store_offers(session, market, offers, now_us=micros(NOW))
        await price_book.store_offers(session, "denvr", read.offers, now_us=micros(NOW))
        listed = await price_book.offers(
            session, now_us=micros(NOW), max_age_s={}, default_max_age_s=10**9, wanted=Wanted(market="denvr")
        )
    doubted = {each.offer.accelerator.name for each in listed if each.excluded and "below a fifth" in each.excluded}
    assert doubted >= {"h100-sxm", "a100-sxm-80"}, "eight at the price of one"


@reference
def test_the_history_of_list_prices_is_known_device_by_device() -> None:
    """Every whole-GPU row of GCP's history means one device."""
    seen = {(row["gpu"], row["gpu_count"]) for row in rows("gcp_gpu_weekly.csv.gz")}
    for gpu, count in seen:
        if count:
            found = identify(gpu, count=int(float(count)))
            assert found.problem is None, gpu


@reference
def test_vasts_zero_spot_prices_are_unknown_and_its_continent_is_not_the_union() -> None:
    listed = rows("vast_snapshot_skypilot_v8.csv")
    abroad = {row["country_iso2"] for row in listed if row["continent"] == "EU"}
    assert all(country_code(code) for code in abroad)
    assert abroad & {"GB", "IS", "NO", "CH"}, "the file has hosts outside of the Union under continent EU"


@reference
def test_local_zones_have_no_country_of_their_region() -> None:
    places = {row["region"] for row in rows("aws_gpu_all_regions_2026-01-21.csv.gz")}
    local = {place for place in places if place.count("-") > 3 or place.count("-") == 4}
    assert local and not any(("aws", place) in regions() for place in local)


@reference
async def test_a_year_of_gcps_prices_is_believed_week_by_week(book: Database) -> None:
    """Real moves, also big ones, are news: a replay of 12 weeks of one region quarantines nothing and records each change."""
    weeks: dict[str, list[dict[str, str]]] = defaultdict(list)
    for row in rows("gcp_gpu_weekly.csv.gz"):
        if row["region"] == "us-central1" and row["gpu_count"] and row["hour_spot_usd"]:
            weeks[row["date"]].append(row)
    for day in sorted(weeks)[-12:]:
        lines = ["sku,gpu,gpu_count,price,currency,pricing,region"]
        lines += [
            f"{r['instance']},{r['gpu']},{int(float(r['gpu_count']))},{r['hour_spot_usd']},USD,spot,{r['region']}"
            for r in weeks[day]
        ]
        at = datetime.fromisoformat(day).replace(tzinfo=UTC)
        read = read_card("\n".join(lines), market="gcp", observed_at=at, source="replay")
        assert read.findings == ()
        async with book.transaction() as session:
            stored = await price_book.store_offers(session, "gcp", read.offers, now_us=micros(at))
        assert stored.quarantined == 0, day


def as_openrouter_says(model: dict[str, Any]) -> dict[str, Any]:
    """A row of the file, which has prices of a million, as the API has it: texts of a price of one token."""
    prices = {
        "prompt": "input_per_1m_usd",
        "completion": "output_per_1m_usd",
        "input_cache_read": "cache_read_per_1m_usd",
    }
    told = {name: model[field] for name, field in prices.items() if model.get(field) is not None}
    return {
        "id": model["openrouter_id"],
        "context_length": model["context_window_tokens"],
        "top_provider": {"max_completion_tokens": model["max_output_tokens"]},
        "pricing": {name: f"{amount.scaleb(-6):f}" for name, amount in told.items()},
    }


@reference
async def test_every_model_of_openrouters_list_is_an_offer_of_tokens_at_its_price(book: Database) -> None:
    """404 models of one day: each price is believed and read back to the last digit, and nobody says where a prompt goes."""
    with gzip.open(PRICES / "openrouter_token_prices_2026-09-06.json.gz", "rt") as file:
        models = json.load(file, parse_float=Decimal, parse_int=Decimal)["models"]
    for model in models:
        for limit in ("context_window_tokens", "max_output_tokens"):
            model[limit] = None if model[limit] is None else int(model[limit])
    offers = openrouter_offers(Shape({"data": [as_openrouter_says(each) for each in models]}, "openrouter"), NOW)
    check([each for each in offers if each.quarantined])
    assert len(offers) == len(models) == len({str(each.key) for each in offers})
    async with book.transaction() as session:
        await price_book.store_offers(session, "openrouter", offers, now_us=micros(NOW))
        listed = await price_book.offers(session, now_us=micros(NOW), max_age_s={}, default_max_age_s=60)
    said = {each["openrouter_id"]: each for each in models}
    for each in listed:
        tokens, endpoint = each.offer.per_million, each.offer.endpoint
        assert tokens is not None and endpoint is not None and each.excluded is None, each.excluded
        model = said[endpoint.model]
        assert (tokens.input, tokens.output) == (model["input_per_1m_usd"], model["output_per_1m_usd"]), endpoint.model
        assert each.offer.country is None and each.offer.data_policy is None and not each.offer.evidence


@reference
@pytest.mark.parametrize("of", ["region", "zone"])
def test_every_accelerator_and_place_of_gcps_lists_is_known_or_known_to_be_unknown(of: str) -> None:
    """`ct3p` was in no table. Of a V100 or A100 without its memory Google's adapter says which; nobody says where us-east7 is."""
    listed = rows(f"gcp_acceleratortype{of}_2026-08.csv", ";")
    names = {row["NAME"] for row in listed}
    unclear = {name for name in names if identify(name.removeprefix("nvidia-"), count=1).problem}
    assert unclear == {"nvidia-tesla-v100", "nvidia-tesla-a100"}
    places = {row["ZONE"] if of == "region" else region_of_zone("gcp", row["ZONE"]) or row["ZONE"] for row in listed}
    assert {place for place in places if ("gcp", place) not in regions()} <= {"us-east7-a", "us-east7-b"}


@reference
def test_the_snapshot_has_gcps_machines_only_where_the_list_has_their_accelerator() -> None:
    """More than half of what the calculator prices is in regions without the accelerator."""
    has: dict[str, set[str]] = defaultdict(set)
    for row in rows("gcp_acceleratortyperegion_2026-08.csv", ";"):
        memory = 40_960 if row["NAME"] == "nvidia-tesla-a100" else None
        name = identify(row["NAME"].removeprefix("nvidia-"), count=1, memory_mib=memory).accelerator.name
        has[name.removesuffix("-40").removesuffix("-80").removesuffix("-sxm")].add(row["ZONE"])
    for each in by_market()["gcp"]:
        name = each.accelerator.name.removesuffix("-40").removesuffix("-80").removesuffix("-sxm")
        assert each.key.region in has[name], each.key
