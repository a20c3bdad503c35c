"""Oracle Cloud: GPU shapes by the cost estimator's public lists. Unverified against the live service.

Sources: the estimator's `shapes.json` (which shapes, their part numbers, whether they may be preemptible) and the price
list's `products` (a copy recorded in US dollars, 2024). Prices are of a GPU and hour, equal in all commercial regions;
preemptible is half of on demand, of virtual machines alone (Oracle's documentation). Nothing public says in which region a
shape exists: offers are of the regions that the settings name, else of none, and then without a place. The estimator's GPU
memory is wrong for some shapes, so it is the table's that counts.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal

from markets.errors import ShapeDrift
from markets.offer import Offer, Pricing
from markets.provider.api import ProviderApi, Reach, together
from markets.provider.listing import MIB_PER_GIB, Said, distinct, offer
from markets.provider.shape import Shape, rows

MARKET = "oci"
REACH = Reach("https://www.oracle.com")
PRICES = Reach("https://apexapps.oracle.com")
SHAPES_PATH = "/a/ocom/docs/cloudestimator2/data/shapes.json"
PRICES_PATH = "/pls/apex/cetools/api/v1/products/"
PREEMPTIBLE = Decimal("0.5")
MINIMUM_S = 60
NOTICE_S = 120
EGRESS_PER_GB = Decimal("0.0085")
# Oracle's documentation of shapes: what the oldest names stand for. Others say it themselves (`BM.GPU.H100.8`).
_GENERATIONS: Mapping[str, tuple[str, str, int]] = {
    "GPU4": ("A100", "SXM4", 40), "GPU3": ("V100", "SXM2", 16), "GPU2": ("P100", "PCIe", 16), "A100": ("A100", "SXM4", 80),
    "H100": ("H100", "SXM5", 80), "H200": ("H200", "SXM5", 141), "B4": ("A100", "SXM4", 40),
}  # fmt: skip
_NAMED = re.compile(r"^(?:VM|BM)\.(?:GPU\.(?P<device>[A-Z0-9]+)|(?P<generation>GPU\d))(?:-v\d)?\.(?P<count>\d+)$")


class OciSource:
    """`prices` is where the price list is: another host than the estimator's."""

    name = MARKET

    def __init__(self, reach: Reach = REACH, prices: Reach | None = None, *, regions: Sequence[str] = ()) -> None:
        self._shapes = ProviderApi(MARKET, reach)
        self._prices = ProviderApi(MARKET, prices or (PRICES if reach is REACH else reach))
        self._regions = tuple(regions)

    async def offers(self) -> list[Offer]:
        at = datetime.now(UTC)
        shapes, products = await together(
            self._shapes.get(SHAPES_PATH), self._prices.get(PRICES_PATH, {"currencyCode": "USD"})
        )
        prices = dict(rows(products["items"].each(), _price))
        return distinct(rows(shapes["items"].each(), lambda row: _of(row, prices, self._regions, at)))

    async def close(self) -> None:
        await self._shapes.close()
        await self._prices.close()


def _price(row: Shape) -> Iterator[tuple[str, Decimal]]:
    """Part number, US dollars an hour of one GPU. Other metrics, and prices in tiers, are not read."""
    if row["metricName"].value != "GPU Per Hour":
        return
    for local in row["currencyCodeLocalizations"].each():
        prices = [each for each in local["prices"].each() if each["model"].text() == "PAY_AS_YOU_GO"]
        if local["currencyCode"].text() == "USD" and len(prices) == 1:
            yield row["partNumber"].text(), prices[0]["value"].number()


def _of(row: Shape, prices: Mapping[str, Decimal], regions: Sequence[str], at: datetime) -> Iterator[Offer]:
    if row["subType"]["value"].value != "gpu" or row["hidden"].flag() or row["status"].text() != "ACTIVE":
        return
    sku = row["name"].text()
    device, form, gib, count = _device(row, sku)
    parts = [each["partNumber"].text() for each in row["products"].each()]
    per_gpu = prices.get(parts[0]) if len(parts) == 1 else None
    everywhere: list[str | None] = [*regions] or [None]
    is_vm = sku.startswith("VM.")
    pricings: list[tuple[Pricing, Decimal]] = [("on_demand", Decimal(1))]
    if is_vm and row["allowPreemptible"].flag():
        pricings.append(("spot", PREEMPTIBLE))
    for pricing, part in pricings:
        for region in everywhere:
            yield offer(
                Said(
                    market=MARKET,
                    sku=sku,
                    pricing=pricing,
                    launch="vm",
                    price=None if per_gpu is None else per_gpu * count * part,
                    source="Oracle cost estimator and price list",
                    raw={"shape": sku, "parts": parts, "usd_per_gpu_hour": str(per_gpu), "part": str(part)},
                    device=device,
                    count=count,
                    memory_mib=gib * MIB_PER_GIB,
                    form=form,
                    region=region,
                    minimum_s=MINIMUM_S,
                    egress_per_gb=EGRESS_PER_GB,
                    interruption_per_hour=Decimal(0) if pricing == "on_demand" else None,
                    notice_s=NOTICE_S if pricing == "spot" else 0,
                ),
                at,
            )


def _device(row: Shape, sku: str) -> tuple[str, str | None, int, int]:
    """Name, form, GiB of one (0: what the table says), count."""
    named = _NAMED.match(sku)
    gpus = row.get("gpuQty")
    if named is None or gpus is None:
        raise ShapeDrift(f"{row.where}: shape {sku!r} says neither which GPU it has nor how many")
    short = named["device"] or named["generation"]
    device, form, gib = _GENERATIONS.get(short, (short, None, 0))
    return device, form, gib, gpus.whole()
