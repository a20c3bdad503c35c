"""SaladCloud: GPUs in people's homes, by priority. Unverified against the live service.

Source: the official OpenAPI document (0.9.0-alpha.17). `GET …/gpu-classes` has a price, a text in dollars an hour, for each
priority; `POST …/availability/sce-gpu-availability` counts what is free, also in chosen countries. A country is a filter of the
scheduler, on residential addresses: a claim and no more. Nodes go without warning: Salad's own test of 100 nodes at the
highest priority in 2025 saw 182 moves in 168 h, 0.011 an hour and node; lower priorities are displaced by higher ones, too,
how often nobody says. Billed by the second while a container runs, its download is free.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal

from markets.errors import ShapeDrift
from markets.offer import Offer
from markets.provider.api import ProviderApi, Reach, together
from markets.provider.listing import MIB_PER_GIB, Place, Said, distinct, offer
from markets.provider.login import CredentialSource, header
from markets.provider.shape import Shape, rows

MARKET = "salad"
REACH = Reach("https://api.salad.com/api/public")
LOGIN = header("Salad-Api-Key")
SOURCE = "SaladCloud /gpu-classes and /sce-gpu-availability"
PRIORITIES = ("high", "medium", "low", "batch")
HAZARD_HIGH = Decimal("0.011")
AT_ONCE = 4
_NAME = re.compile(r"(?P<device>.+?) \((?P<gib>\d+) GB\)")


@dataclass(frozen=True, slots=True)
class Stock:
    """How many GPUs of a class are free in `country` (None: anywhere), as the service says."""

    country: str | None
    free: Shape


class SaladSource:
    """The offers that an organization has. `countries` (ISO alpha-2): one offer for each; none: one for anywhere."""

    name = MARKET

    def __init__(
        self, credentials: CredentialSource, reach: Reach = REACH, *, organization: str, countries: Sequence[str] = ()
    ) -> None:
        self._api = ProviderApi(MARKET, reach, login=LOGIN, credentials=credentials)
        self._organization = f"/organizations/{organization}"
        self._countries = tuple(countries) or (None,)

    async def offers(self) -> list[Offer]:
        at = datetime.now(UTC)
        classes = (await self._api.get(f"{self._organization}/gpu-classes"))["items"].each()
        asks = rows(classes, lambda each: [(each, each["id"].text(), country) for country in self._countries])
        stocks = await together(*(self._stock(gpu_class, country) for _, gpu_class, country in asks), at_once=AT_ONCE)
        return salad_offers([(each, stock) for (each, _, _), stock in zip(asks, stocks, strict=True)], at)

    async def close(self) -> None:
        await self._api.close()

    async def _stock(self, gpu_class: str, country: str | None) -> Stock:
        body: dict[str, list[str]] = {"gpu_classes": [gpu_class]}
        if country:
            body["country_codes"] = [country.lower()]
        path = f"{self._organization}/availability/sce-gpu-availability"
        return Stock(country, await self._api.post(path, body))


def salad_offers(stocks: Sequence[tuple[Shape, Stock]], at: datetime) -> list[Offer]:
    """One offer for each class, priority and country."""

    def of(pair: tuple[Shape, Stock]) -> Iterator[Offer]:
        for price in pair[0]["prices"].each():
            if price["priority"].value in PRIORITIES:
                yield _offer(*pair, price, at)

    return distinct(rows(stocks, of))


def _offer(gpu_class: Shape, stock: Stock, price: Shape, at: datetime) -> Offer:
    priority = price["priority"].text()
    counted = gpu_class.get("gpu_count")
    count = counted.whole() if counted else 1
    if count < 1:
        raise ShapeDrift(f"{gpu_class.where}: a GPU class with {count} GPUs")
    described = _NAME.fullmatch(name := gpu_class["name"].text())
    free = stock.free.get(f"available_gpu_{priority}")
    return offer(
        Said(
            market=MARKET,
            sku=f"{gpu_class['id'].text()}/{priority}",
            pricing="on_demand" if priority == "high" else "spot",
            launch="container",
            price=price["price"].number(),
            source=SOURCE,
            raw={"class": gpu_class.value, "priority": priority, "country": stock.country, "free": stock.free.value},
            device=described["device"] if described else name,
            count=count,
            memory_mib=int(described["gib"]) * MIB_PER_GIB if described else 0,
            region=stock.country.lower() if stock.country else None,
            place=Place(stock.country, "claimed", "host_claim", SOURCE) if stock.country else None,
            by_hosts=True,
            capacity=max(0, free.whole()) // count if free else None,
            interruption_per_hour=HAZARD_HIGH if priority == "high" else None,
        ),
        at,
    )
