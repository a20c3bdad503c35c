"""Verda (formerly DataCrunch): machines in Finland and Iceland, on demand and spot. Unverified against the live service.

Source: the provider's Python SDK (1.25, whose requests are ours: `isSpot`, not `is_spot`) and rows that others recorded
(2026-10); there is no published OpenAPI document. Prices are
texts, US dollars an hour of the whole machine; `gpu_memory` is of all GPUs together. Log-in by OAuth2 client credentials. No
notice before spot ends. Billing in steps of ten minutes is believed, not documented there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from decimal import Decimal

from markets.offer import Offer, Pricing
from markets.provider.api import ProviderApi, Reach, together
from markets.provider.listing import MIB_PER_GIB, Said, declared, distinct, offer
from markets.provider.login import CredentialSource, client_credentials
from markets.provider.shape import Shape, rows

MARKET = "verda"
REACH = Reach("https://api.verda.com")
LOGIN = client_credentials("/v1/oauth2/token")
STEP_S = 600


class VerdaSource:
    """Every type in every location: where there is no room at the moment, with capacity 0."""

    name = MARKET

    def __init__(self, credentials: CredentialSource, reach: Reach = REACH) -> None:
        self._api = ProviderApi(MARKET, reach, login=LOGIN, credentials=credentials)

    async def offers(self) -> list[Offer]:
        at = datetime.now(UTC)
        types = await self._api.get(
            "/v1/instance-types", {"currency": "usd"}
        )  # before the others, so that one of them fetches the token
        locations, free, free_spot = await together(
            self._api.get("/v1/locations"),
            self._api.get("/v1/instance-availability", {"isSpot": "false"}),
            self._api.get("/v1/instance-availability", {"isSpot": "true"}),
        )
        countries = {each["code"].text(): each["country_code"].text() for each in locations.each()}
        room = {"on_demand": _room(free), "spot": _room(free_spot)}
        return distinct(rows(types.each(), lambda row: _of(row, countries, room, at)))

    async def close(self) -> None:
        await self._api.close()


def _room(answer: Shape) -> set[tuple[str, str]]:
    """(location, type) of all that is free."""
    return {
        (each["location_code"].text(), kind.text()) for each in answer.each() for kind in each["availabilities"].each()
    }


def _of(
    row: Shape, countries: Mapping[str, str], room: Mapping[str, set[tuple[str, str]]], at: datetime
) -> Iterator[Offer]:
    sku = row["instance_type"].text()
    count = row["gpu"]["number_of_gpus"].whole()
    currency = row.get("currency")
    prices: tuple[tuple[Pricing, Shape | None], ...] = (
        ("on_demand", row["price_per_hour"]),
        ("spot", row.get("spot_price")),
    )
    for pricing, price in prices:
        if price is None:
            continue
        for location, country in sorted(countries.items()):
            yield offer(
                Said(
                    market=MARKET,
                    sku=sku,
                    pricing=pricing,
                    launch="vm",
                    price=price.number(),
                    currency=currency.text().upper() if currency else "USD",
                    source="Verda /v1/instance-types",
                    raw={"type": sku, "pricing": pricing, "price": str(price.value), "location": location},
                    device=row["name"].text() if count else None,
                    count=count,
                    memory_mib=row["gpu_memory"]["size_in_gigabytes"].whole() * MIB_PER_GIB // count if count else 0,
                    region=location,
                    place=declared(country, "Verda /v1/locations"),
                    capacity=None if (location, sku) in room[pricing] else 0,
                    granularity_s=STEP_S,
                    minimum_s=STEP_S,
                    interruption_per_hour=Decimal(0) if pricing == "on_demand" else None,
                ),
                at,
            )
