"""Vultr: machines with whole GPUs and slices, and bare metal; the lists are public. Unverified against the live service.

Source: the official OpenAPI document (2025-08), `/plans`, `/plans-metal`, `/regions`; prices by the hour, GPU fields and
preemptible prices are not in it but in recorded rows (2026-10). Bare metal and dedicated rows say nothing of their GPUs but
in their id (`vbm-112c-2048gb-8-h100-gpu`, `vcg-a40-24c-120g-48vram`). A plan is listed in a region while there is room.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal

from markets.facts.accelerators import identify
from markets.offer import Offer, Pricing
from markets.provider.api import ProviderApi, Reach, together
from markets.provider.listing import MIB_PER_GIB, Said, declared, distinct, offer
from markets.provider.shape import Shape, rows

MARKET = "vultr"
REACH = Reach("https://api.vultr.com")
PAGE = "500"
# Of one whole device, in GiB: a plan's memory tells how many of them it has, or what part of one.
WHOLE_GIB: Mapping[str, int] = {
    "a16": 16, "a40": 48, "a100": 80, "l40s": 48, "h100": 80, "gh200": 96, "b200": 180, "mi300x": 192, "mi325x": 256,
    "mi355x": 288,
}  # fmt: skip
_METAL = re.compile(r"-(?P<count>\d+)-(?P<device>[a-z]+\d+[a-z]*)-gpu$")
_CLOUD = re.compile(r"^vcg-(?P<device>[a-z]+\d+[a-z]*)-.*-(?P<gib>\d+)vram$")


@dataclass(frozen=True, slots=True)
class Gpus:
    """What a plan has: `count` whole devices, or one `fraction`."""

    device: str
    count: int
    fraction: Decimal = Decimal(1)
    gib: int = 0


class VultrSource:
    name = MARKET

    def __init__(self, reach: Reach = REACH) -> None:
        self._api = ProviderApi(MARKET, reach)

    async def offers(self) -> list[Offer]:
        at = datetime.now(UTC)
        plans, metal, regions = await together(
            self._all("/v2/plans", "plans"),
            self._all("/v2/plans-metal", "plans_metal"),
            self._all("/v2/regions", "regions"),
        )
        countries = {each["id"].text(): each["country"].text() for each in regions}
        return distinct(rows([*plans, *metal], lambda row: _of(row, countries, at)))

    async def close(self) -> None:
        await self._api.close()

    async def _all(self, path: str, member: str) -> list[Shape]:
        """Every row. ShapeDrift when there are fewer than the answer itself says."""

        async def ask(cursor: str) -> Shape:
            return await self._api.get(path, {"per_page": PAGE} | ({"cursor": cursor} if cursor else {}))

        def after(page: Shape) -> str | None:
            following = page["meta"]["links"].get("next")
            return str(following.value) if following and following.value else None

        return [row for page in await self._api.pages(ask, "", after) for row in page[member].each()]


def _of(row: Shape, countries: Mapping[str, str], at: datetime) -> Iterator[Offer]:
    sku = row["id"].text()
    gpus = _gpus(row, sku)
    if gpus is None:  # a machine of processors alone, most of the list
        return
    # an empty name among the places is none (seen in recorded rows)
    places: list[str | None] = [each.text() for each in row["locations"].each() if each.value != ""]
    for pricing, price, is_sold in _prices(row):
        if not is_sold:
            continue
        for region in places or [None]:
            yield offer(
                Said(
                    market=MARKET,
                    sku=sku,
                    pricing=pricing,
                    launch="vm",
                    price=price,
                    source="Vultr /v2/plans",
                    raw={"id": sku, "pricing": pricing, "usd_per_hour": str(price), "region": region},
                    device=gpus.device,
                    count=gpus.count,
                    memory_mib=gpus.gib * MIB_PER_GIB,
                    fraction=gpus.fraction,
                    region=region,
                    place=declared(countries.get(region or ""), "Vultr /v2/regions"),
                    capacity=None if region else 0,
                    granularity_s=3_600,
                    minimum_s=3_600,
                    interruption_per_hour=Decimal(0) if pricing == "on_demand" else None,
                ),
                at,
            )


def _prices(row: Shape) -> Iterator[tuple[Pricing, Decimal | None, bool]]:
    """Each price, and whether the plan is sold so. Without a word about it, it is."""
    demand, spare = row.get("hourly_cost"), row.get("hourly_cost_preemptible")
    on_demand, preemptible = row.get("deploy_ondemand"), row.get("deploy_preemptible")
    yield "on_demand", demand.number() if demand else None, on_demand is None or on_demand.flag()
    if spare is not None:
        yield "spot", spare.number(), preemptible is None or preemptible.flag()


def _gpus(row: Shape, sku: str) -> Gpus | None:
    if (metal := _METAL.search(sku)) is not None:
        return Gpus(metal["device"], int(metal["count"]))
    gib, kind, named = row.get("gpu_vram_gb"), row.get("gpu_type"), _CLOUD.match(sku)
    if gib is None and named is None:
        return None
    device = named["device"] if named else kind.text() if kind else "unnamed"
    total = gib.whole() if gib else int(named["gib"]) if named else 0
    whole = WHOLE_GIB.get(device)
    if whole is None:
        return Gpus(device, 1, gib=total)
    if total < whole:
        return Gpus(device, 1, Decimal(total) / whole, whole)
    # 160 GB of A100 are two; what does not come out even is left to the table to refuse
    return Gpus(device, total // whole, gib=whole) if total % whole == 0 else Gpus(device, 1, gib=total)


def is_known(device: str) -> bool:
    """Whether the accelerator table has the device; a test holds WHOLE_GIB against it."""
    return identify(device, count=1, memory_mib=WHOLE_GIB[device] * MIB_PER_GIB).problem is None
