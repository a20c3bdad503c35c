"""Shadeform: many clouds behind one API, each with its own machines. Unverified against the live service.

Source: the official OpenAPI document (2026-03), `/instances/types`. Prices are US cents an hour, of the whole machine. What is
sold out is listed with `available: false`. The machines are another cloud's: where that one is a market of ours, too, its own
offers count, and these are listed as the same machines. A region's display name is free text ("US, Wichita, KS" and, in the
document itself, "Toronto, Canana"): a country is read from it only where it stands in full, or first as an ISO code.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal

from markets.offer import Launch, Offer
from markets.provider.api import ProviderApi, Reach
from markets.provider.listing import MIB_PER_GIB, Place, Said, distinct, offer
from markets.provider.login import CredentialSource, header
from markets.provider.shape import Shape, rows
from markets.sources.resold import Direct, country_said, operated

MARKET = "shadeform"
REACH = Reach("https://api.shadeform.ai/v1", timeout_s=60)
LOGIN = header("X-API-KEY")
CENTS = Decimal(100)
SOURCE = "Shadeform /instances/types"
_LAUNCHES: dict[str, Launch] = {"vm": "vm", "container": "container", "baremetal": "vm"}


class ShadeformSource:
    name = MARKET

    def __init__(self, credentials: CredentialSource, reach: Reach = REACH, *, direct: Direct | None = None) -> None:
        self._api = ProviderApi(MARKET, reach, login=LOGIN, credentials=credentials)
        self._direct = direct or Direct()

    async def offers(self) -> list[Offer]:
        at = datetime.now(UTC)
        answer = await self._api.get("/instances/types")
        return shadeform_offers(answer, at, self._direct)

    async def close(self) -> None:
        await self._api.close()


def shadeform_offers(answer: Shape, at: datetime, direct: Direct) -> list[Offer]:
    """One offer for each type and region, sold out or not."""

    def of(kind: Shape) -> Iterator[Offer]:
        cloud = kind["cloud"].text()
        chip = kind["configuration"]
        operator, home = operated(cloud)
        boot = kind.get("boot_time")
        slowest = boot.get("max_boot_in_sec") if boot else None
        for place in kind["availability"].each():
            region = place["region"].text()
            country = country_said(place["display_name"].text(), region)
            yield offer(
                Said(
                    market=MARKET,
                    sku=f"{cloud}/{kind['shade_instance_type'].text()}/{kind['cloud_instance_type'].text()}",
                    pricing="on_demand",
                    launch=_LAUNCHES.get(kind["deployment_type"].text(), "vm"),
                    price=kind["hourly_price"].number() / CENTS,
                    source=SOURCE,
                    raw={"type": kind.value, "region": place.value},
                    device=chip["gpu_type"].text() if chip["num_gpus"].whole() else None,
                    count=chip["num_gpus"].whole(),
                    memory_mib=chip["vram_per_gpu_in_gb"].whole() * MIB_PER_GIB,
                    form=chip["interconnect"].text() if chip["interconnect"].value else None,
                    region=region,
                    place=Place(country, "claimed", "host_claim", SOURCE) if country else None,
                    operator=operator,
                    home=home,
                    capacity=None if place["available"].flag() else 0,
                    boot_s=slowest.whole() if slowest else None,
                    not_for_sale=direct.same_machines(cloud),
                ),
                at,
            )

    return distinct(rows(answer["instance_types"].each(), of))
