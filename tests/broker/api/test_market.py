"""The price book and the models over HTTP."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest

from jobs.clock import db_now
from markets import price_book
from markets.offer import Accelerator, Evidence, Offer, OfferKey


def offer(sku: str, price: str | None, country: str | None = "DE", **changes: Any) -> Offer:
    now = datetime.now(UTC)
    fields: dict[str, Any] = {
        "key": OfferKey("sandbox", "r", None, sku, "cpu", 0, "spot"),
        "launch": "process",
        "accelerator": Accelerator(),
        "currency": "USD",
        "price": None if price is None else Decimal(price),
        "observed_at": now,
        "source": "test",
        "raw_sha256": "0" * 64,
        "country": country,
        "evidence": (Evidence("provider_api", "x", now, timedelta(days=1)),) if country else (),
        "location_tier": "named_datacenter",
        **changes,
    }
    return Offer(**fields)


@pytest.fixture
async def listed(server: Any) -> Any:
    gpu = Accelerator(kind="nvidia", name="h100", memory_mib=81_920, count=8)
    offers = [
        offer("dear", "0.3", "FR"),
        offer("cheap", "0.000000001", "DE"),
        offer("free", "0"),
        offer("unknown", None, None),
        offer("sold-out", "0.2", capacity=0),
        offer("old", "0.1", observed_at=datetime.now(UTC) - timedelta(days=2)),
        offer("gpu", "20", "US", accelerator=gpu, launch="container"),
    ]
    async with server.services.database.transaction() as session:
        await price_book.store_offers(session, "sandbox", offers, now_us=await db_now(session))
    return server


def skus(answer: Any) -> list[str]:
    return [each["key"].split("/")[3] for each in answer.json["data"]]


async def test_all_offers_are_listed_cheapest_first_with_reasons(listed: Any) -> None:
    answer = await listed.call("GET", "/v1/market/offers?market=sandbox")
    assert skus(answer) == ["cheap", "sold-out", "dear", "gpu", "old", "free", "unknown"], (
        "what may be chosen comes first"
    )
    by_sku = dict(zip(skus(answer), answer.json["data"], strict=True))
    assert by_sku["cheap"]["usd_per_hour"] == "0.000000001"
    assert by_sku["cheap"]["reason"] is None
    assert (by_sku["free"]["usd_per_hour"], by_sku["free"]["quarantined"]) == (None, True), "0 is unknown, never free"
    assert "not free" in by_sku["free"]["reason"]
    assert "stale" in by_sku["old"]["reason"]
    assert by_sku["sold-out"]["capacity"] == 0
    assert (by_sku["gpu"]["usd_per_gpu_hour"], by_sku["gpu"]["gpu_memory_gib"]) == ("2.5", "80")


@pytest.mark.parametrize(
    ("query", "wanted"),
    [
        ("country=fr&market=sandbox", ["dear"]),
        ("market=sandbox&country=US", ["gpu"]),
        ("market=sandbox&gpu=h1", ["gpu"]),
        ("market=sandbox&min_gpus=8", ["gpu"]),
        ("market=sandbox&max_usd=0.2", ["cheap", "sold-out", "old"]),
        ("market=sandbox&usable=true", ["cheap", "dear", "gpu"]),
        ("usable=true&limit=2", ["cheap", "dear"]),  # by the database alone
        ("usable=true&limit=3&market=sandbox", ["cheap", "dear", "gpu"]),
        ("usable=true&limit=9&market=sandbox", ["cheap", "dear", "gpu"]),
        ("usable=true&limit=1&gpu=H1", ["gpu"]),
        ("usable=true&limit=1&country=fr", ["dear"]),
        ("usable=true&limit=2&max_usd=0.2", ["cheap"]),
        ("market=sandbox&limit=1", ["cheap"]),
        ("market=sandbox&pricing=bid", []),
        ("market=nowhere", []),
        ("model=tiny&country=US", []),  # its image is not known for containers
    ],
)
async def test_offers_are_filtered(listed: Any, query: str, wanted: list[str]) -> None:
    assert skus(await listed.call("GET", f"/v1/market/offers?{query}")) == wanted


async def test_an_unknown_model_is_404_and_not_an_empty_list(listed: Any) -> None:
    answer = await listed.call("GET", "/v1/market/offers?model=nobody")
    assert (answer.status, answer.code) == (404, "model_not_found")


async def test_a_model_counts_the_offers_that_could_run_it_now(listed: Any) -> None:
    model = (await listed.call("GET", "/v1/models/tiny")).json
    assert model["x_broker"]["offers"] == 2, "cheap and dear: not sold out, stale, unpriced or of another launch"


@pytest.mark.parametrize(
    ("given", "mend"),
    [("Germany", "write DE"), ("uk", "write GB"), ("XX", "such as DE"), ("Atlantis", "such as DE"), ("", "such as DE")],
)
async def test_a_country_that_is_no_code_is_answered_with_the_code_to_write(server: Any, given: str, mend: str) -> None:
    """It was answered with a regular expression, and one that is no country with an empty list."""
    for path in ("/v1/market/offers", "/v1/market/offers/export"):
        answer = await server.call("GET", f"{path}?country={given}")
        assert (answer.status, answer.json["error"]["param"]) == (400, "country")
        assert f"ISO 3166 code of a country, two letters: {mend}" in answer.json["error"]["message"]


async def test_what_a_field_should_be_is_said_in_words_and_not_as_a_regular_expression(server: Any) -> None:
    answer = await server.call("GET", "/v1/ledger/rates?unit=eur")
    assert answer.json["error"]["message"] == (
        'unit: Input should be: the code of a currency or coin in capitals, such as EUR, got "eur"'
    )


async def test_a_pool_that_the_book_does_not_have_is_404_and_not_a_day_of_unknown_hours(listed: Any) -> None:
    for query in ("market=nowhere&gpu=h100", "market=sandbox&gpu=h1"):
        answer = await listed.call("GET", f"/v1/market/pool?{query}")
        assert (answer.status, answer.code) == (404, "pool_not_found"), answer.raw
