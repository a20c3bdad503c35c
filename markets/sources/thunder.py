"""Thunder Compute: a public price list and the shapes it is sold in. Unverified against the live service.

Source: the official OpenAPI document (2026-06), `/pricing` and `/specs`, both without log-in. A shape is named
`<gpu>_x<count>[_<mode>]`, and its price is of the whole machine. The fewest vCPUs that a shape can be had with are in its
price, as the official command-line client reckons. Billing is by the minute. Nothing says what is free at the moment, nor
where a machine is: "North America" in the provider's documentation is no country.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime

from markets.offer import Offer
from markets.provider.api import ProviderApi, Reach, together
from markets.provider.listing import MIB_PER_GIB, Said, distinct, offer
from markets.provider.shape import Shape, rows

MARKET = "thunder"
REACH = Reach("https://api.thundercompute.com:8443/v1")
SOURCE = "Thunder Compute /pricing and /specs"
_SHAPE = re.compile(r"(?P<gpu>[a-z0-9]+)_x(?P<count>\d+)(?:_(?P<mode>[a-z]+))?")
# the provider's own abbreviation: "xl" is the 80 GB card
_DEVICES: Mapping[str, str] = {"a100xl": "A100"}


class ThunderSource:
    name = MARKET

    def __init__(self, reach: Reach = REACH) -> None:
        self._api = ProviderApi(MARKET, reach)

    async def offers(self) -> list[Offer]:
        at = datetime.now(UTC)
        pricing, specs = await together(self._api.get("/pricing"), self._api.get("/specs"))
        return thunder_offers(pricing, specs, at)

    async def close(self) -> None:
        await self._api.close()


def thunder_offers(pricing: Shape, specs: Shape, at: datetime) -> list[Offer]:
    """One offer for each shape of `specs`. The price list has other things in it, too: disks, vCPUs, snapshots.

    A shape that comes without a mode and with one is sold under both names: the name without is left out.
    """
    prices = dict(pricing["pricing"].entries())
    shapes = specs["specs"].entries()
    names = {name for name, _ in shapes}
    alias = {name for name in names if any(other.startswith(f"{name}_") for other in names)}

    def of(entry: tuple[str, Shape]) -> Iterator[Offer]:
        name, shape = entry
        read = _SHAPE.fullmatch(name)
        if name in alias or read is None or int(read["count"]) == 0:
            return
        price = prices.get(name)  # never the price of another mode: they differ by half
        gib = shape.get("vramGB")
        options = shape.get("vcpuOptions")
        vcpus = min((each.whole() for each in options.each()), default=0) if options else 0
        yield offer(
            Said(
                market=MARKET,
                sku=f"{name}/{vcpus}vcpu" if vcpus else name,
                pricing="on_demand",
                launch="vm",
                price=price.number() if price else None,
                source=SOURCE,
                raw={"shape": name, "spec": shape.value, "usd_per_hour": price and price.value},
                device=_device(read["gpu"], shape),
                count=int(read["count"]),
                memory_mib=gib.whole() * MIB_PER_GIB if gib else 0,
                granularity_s=60,
                minimum_s=60,
            ),
            at,
        )

    return distinct(rows(shapes, of))


def _device(gpu: str, shape: Shape) -> str:
    """`NVIDIA A100 (80GB)`, or what the shape's name says."""
    shown = shape.get("displayName")
    return shown.text() if shown else _DEVICES.get(gpu, gpu)
