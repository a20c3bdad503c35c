"""Prime Intellect: GPUs of some 24 providers in one list. Unverified against the live service.

Source: a copy of the official OpenAPI document (0.1.0, third party) and PyPI `prime` 0.18.0, `GET /api/v1/availability/gpus`.
A price is of the whole configuration and an hour, in dollars or euros: `onDemand` in secure clouds, `communityPrice` in
community ones. Disk, CPUs and memory cost extra where their default is not included. `prepaidTime` hours are charged at the
start whatever is used. The machines are another provider's: where that one is a market of ours, too, its own offers count.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal

from markets.facts.regions import country_code
from markets.hourly import FxRate
from markets.offer import Offer
from markets.provider.api import ProviderApi, Reach
from markets.provider.listing import MIB_PER_GIB, Place, Said, distinct, offer
from markets.provider.login import CredentialSource, bearer
from markets.provider.shape import Shape, rows
from markets.sources.resold import Direct, operated

MARKET = "prime-intellect"
REACH = Reach("https://api.primeintellect.ai", timeout_s=60)
LOGIN = bearer()
GPUS = "/api/v1/availability/gpus"
PAGE = 100
SOURCE = "Prime Intellect /availability/gpus"
_PARTS = ("disk", "vcpu", "memory")


class PrimeIntellectSource:
    name = MARKET

    def __init__(
        self,
        credentials: CredentialSource,
        reach: Reach = REACH,
        *,
        direct: Direct | None = None,
        fx: Callable[[], Mapping[str, FxRate]] = dict,
    ) -> None:
        self._api = ProviderApi(MARKET, reach, login=LOGIN, credentials=credentials)
        self._direct, self._fx = direct or Direct(), fx

    async def offers(self) -> list[Offer]:
        at = datetime.now(UTC)

        async def ask(page: int) -> Shape:
            return await self._api.get(GPUS, {"page": str(page), "page_size": str(PAGE)})

        pages = await self._api.pages(ask, 1, _Pages().after)
        items = [item for page in pages for item in page["items"].each()]
        return prime_offers(items, at, self._direct, self._fx())

    async def close(self) -> None:
        await self._api.close()


@dataclass
class _Pages:
    """How far a list has been read: its pages do not say which they are."""

    number: int = 1
    listed: int = 0

    def after(self, page: Shape) -> int | None:
        self.listed += len(page["items"].each())
        self.number += 1
        return self.number if page["items"].each() and self.listed < page["totalCount"].whole() else None


def prime_offers(items: list[Shape], at: datetime, direct: Direct, fx: Mapping[str, FxRate]) -> list[Offer]:
    """One offer for each GPU configuration; nodes without GPUs are left out."""

    def of(item: Shape) -> Iterator[Offer]:
        kind, count = item["gpuType"].text(), item["gpuCount"].whole()
        if kind == "CPU_NODE" or count == 0:
            return
        provider, security = item["provider"].text(), item["security"].text()
        parts, price = _price(item, security)
        operator, home = operated(provider)
        prepaid = item.get("prepaidTime")
        ready = item.get("provisioningTime")
        region, zone, socket = item.get("region"), item.get("dataCenter"), item.get("socket")
        yield offer(
            Said(
                market=MARKET,
                sku=f"{provider}/{item['cloudId'].text()}/{security}",
                pricing="spot" if _is_set(item, "isSpot") else "on_demand",
                launch="vm",
                price=price,
                currency=item["prices"]["currency"].text(),
                fx=fx,
                components=parts,
                source=SOURCE,
                raw={"item": item.value},
                device=kind.replace("_", " "),
                count=count,
                memory_mib=item["gpuMemory"].whole() * MIB_PER_GIB,
                form=socket.text() if socket else None,
                region=region.text() if region else None,
                zone=zone.text() if zone else None,
                place=_place(item, security),
                operator=operator,
                home=home,
                capacity=0 if _text(item, "stockStatus") == "Unavailable" else None,
                minimum_s=int(prepaid.number() * 3600) if prepaid else 0,
                boot_s=ready.whole() * 60 if ready else None,
                not_for_sale=direct.same_machines(provider),
            ),
            at,
        )

    return distinct(rows(items, of))


def _price(item: Shape, security: str) -> tuple[dict[str, Decimal], Decimal | None]:
    """Its components and their sum. None: no price for this kind of cloud, and then extras do not make one."""
    prices = item["prices"]
    base = prices.get("communityPrice") if security == "community_cloud" else None
    base = base or prices.get("onDemand")
    if base is None or base.number() <= 0:
        return {}, None
    parts = {"gpus": base.number()}
    for name in _PARTS:
        part = item.get(name)
        if part is None or _is_set(part, "defaultIncludedInPrice"):
            continue
        unit, count = part.get("pricePerUnit"), part.get("defaultCount") or part.get("minCount")
        if unit and count and unit.number() > 0:
            parts[name] = unit.number() * count.number()
    return parts, sum(parts.values(), Decimal(0))


def _place(item: Shape, security: str) -> Place | None:
    """A named data center of a secure cloud vouches for its country; a community host claims it."""
    country = country_code(_text(item, "country"))
    if country is None:
        return None
    if security == "secure_cloud" and _text(item, "dataCenter"):
        return Place(country, "named_datacenter", "datacenter_name", SOURCE)
    return Place(country, "claimed", "host_claim", SOURCE)


def _text(shape: Shape, name: str) -> str | None:
    found = shape.get(name)
    return found.text() if found and found.value != "" else None


def _is_set(shape: Shape, name: str) -> bool:
    found = shape.get(name)
    return found is not None and found.flag()
