"""Akash: what GPUs go for on the network, and which providers could serve one now. Unverified against the live service.

Source: the Console API's official OpenAPI document (console@d84c9e9, 2026-08): `GET /v1/gpu-prices`, `GET /v1/providers` and
`POST /v1/bid-screening`, all without log-in. A price is of one GPU and an hour, in dollars, out of the last weeks' bids: the
median is what an order may expect, the minimum a lure. It may be null. A provider's location is its own word, its gateway's
GeoIP, or an auditor's signature: they are held against each other, and GeoIP alone proves nothing. An order pays by block of
6 s out of a deposit, whose rest comes back; without a reclamation clause the provider may close at any time.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from markets.facts.regions import country_code
from markets.offer import LocationTier, Offer
from markets.provider.api import ProviderApi, Reach, together
from markets.provider.listing import MIB_PER_GIB, Place, Said, distinct, offer
from markets.provider.shape import Shape, rows

MARKET = "akash"
REACH = Reach("https://console-api.akash.network", timeout_s=30)
SOURCE = "Akash Console /v1/gpu-prices, /v1/bid-screening, /v1/providers"
BLOCK_S = 6
DEPOSIT = Decimal("0.5")
# Akash Network's own, the one auditor that its console lists
AUDITORS = frozenset({"akash1365yvmc4s7awdyj3n2sav7xfx76adc6dnmlx63"})
# what a vLLM container needs beside its GPU; a provider without room for it cannot bid
CPU_MILLI, MEMORY_GIB, DISK_GIB = 8_000, 32, 150
MAX_PRICE_UACT = "100000"
AT_ONCE = 4


@dataclass(frozen=True, slots=True)
class Gpu:
    """One model that the network has a price for. `free` GPUs are on all providers together."""

    vendor: str
    model: str
    ram: str
    interface: str
    free: int
    price: Decimal | None
    raw: Mapping[str, Any]


class AkashSource:
    name = MARKET

    def __init__(self, reach: Reach = REACH) -> None:
        self._api = ProviderApi(MARKET, reach)

    async def offers(self) -> list[Offer]:
        """Every model that has a price, at every provider that could bid for one GPU of it."""
        at = datetime.now(UTC)
        prices, providers = await together(self._api.get("/v1/gpu-prices"), self._api.get("/v1/providers"))
        gpus = rows(prices["models"].each(), _gpu)
        bidders = await together(*(self._bidders(gpu) for gpu in gpus), at_once=AT_ONCE)
        return akash_offers(list(zip(gpus, bidders, strict=True)), places_of(providers), at)

    async def close(self) -> None:
        await self._api.close()

    async def _bidders(self, gpu: Gpu) -> list[Shape]:
        """Nobody is asked about a model of which none is free, or that has no price."""
        if gpu.free == 0 or gpu.price is None:
            return []
        return (await self._api.post("/v1/bid-screening", screening(gpu)))["providers"].each()


def screening(gpu: Gpu) -> dict[str, Any]:
    """Who could take one container with one GPU of this kind."""
    words = f"vendor/{gpu.vendor}/model/{gpu.model}"
    words += f"/ram/{gpu.ram}" if gpu.ram else ""
    words += f"/interface/{interface}" if (interface := re.sub(r"\d+$", "", gpu.interface.lower())) else ""
    gib = 1024**3
    resource = {
        "id": 1,
        "cpu": {"units": {"val": str(CPU_MILLI)}},
        "memory": {"quantity": {"val": str(MEMORY_GIB * gib)}},
        "gpu": {"units": {"val": "1"}, "attributes": [{"key": words, "value": "true"}]},
        "storage": [{"name": "default", "quantity": {"val": str(DISK_GIB * gib)}}],
        "endpoints": [],
    }
    price = {"denom": "uact", "amount": MAX_PRICE_UACT}
    return {"resources": [{"resource": resource, "count": 1, "price": price}], "timezone": "UTC"}


def akash_offers(
    screened: Sequence[tuple[Gpu, Sequence[Shape]]], places: Mapping[str, Place | None], at: datetime
) -> list[Offer]:
    """One offer for each model and provider; one without a provider, sold out, for a model that nobody can serve."""

    def of(gpu: Gpu, bidder: Shape | None) -> Iterator[Offer]:
        owner = bidder["owner"].text() if bidder else None
        where = bidder.get("location") if bidder else None
        yield offer(
            Said(
                market=MARKET,
                sku=owner or "nobody",
                pricing="on_demand",
                launch="container",
                price=gpu.price,
                source=SOURCE,
                raw={"gpu": gpu.raw, "bidder": bidder and bidder.value},
                device=" ".join((gpu.vendor, gpu.model, gpu.ram.removesuffix("i") + "B")).strip(),
                count=1,
                memory_mib=_mib(gpu.ram),
                form=gpu.interface or None,
                region=where.text() if where else None,
                place=places.get(owner) if owner else None,
                operator=owner,
                by_hosts=True,
                capacity=None if bidder and not _is_down(bidder) else 0,
                granularity_s=BLOCK_S,
                deposit=DEPOSIT,
                refundable_fraction=Decimal(1),
            ),
            at,
        )

    pairs = [(gpu, bidder) for gpu, bidders in screened for bidder in (bidders or (None,))]
    return distinct(rows(pairs, lambda pair: of(*pair)))


def places_of(providers: Shape) -> dict[str, Place | None]:
    """Owner → where it is. None where its own word and its gateway's address contradict each other, or neither says."""
    return dict(rows(providers.each(), lambda provider: [(provider["owner"].text(), _place(provider))]))


def _place(provider: Shape) -> Place | None:
    """Verified is only what an auditor has signed, in a data center, with the address in the same country."""
    signed = {each["key"].text(): each for each in provider["attributes"].each()}
    country = signed.get("country")
    said = _country(country.get("value") if country else None) or _country(provider.get("country"))
    address = _country(provider.get("ipCountryCode"))
    if said and address and said != address:
        return None
    if said is None:
        return Place(address, "claimed", "geoip", SOURCE) if address else None
    is_signed = country is not None and bool(AUDITORS & {each.text() for each in country["auditedBy"].each()})
    kind = provider.get("locationType")
    is_verified = is_signed and address == said and kind is not None and kind.text() == "datacenter"
    tier: LocationTier = "verified_host" if is_verified else "claimed"
    return Place(said, tier, "auditor_signed" if is_signed else "host_claim", SOURCE)


def _country(said: Shape | None) -> str | None:
    return country_code(said.value) if said and isinstance(said.value, str) else None


def _gpu(model: Shape) -> Iterator[Gpu]:
    price = model["price"]
    yield Gpu(
        vendor=model["vendor"].text(),
        model=model["model"].text(),
        ram=str(model["ram"].value or ""),
        interface=str(model["interface"].value or ""),
        free=model["availability"]["available"].whole(),
        price=None if price.value is None else _usd(price),
        raw=model.value,
    )


def _usd(price: Shape) -> Decimal | None:
    return price["med"].number() if price["currency"].text() == "USD" else None


def _is_down(bidder: Shape) -> bool:
    return any(day["hasOpenIncident"].flag() for day in bidder["incidents"].each())


def _mib(ram: str) -> int:
    read = re.fullmatch(r"(\d+)Gi", ram)
    return int(read[1]) * MIB_PER_GIB if read else 0
