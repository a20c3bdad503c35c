"""Azure: GPU machines by the public Retail Prices API, a region after the other. Unverified against the live service.

Source: Microsoft's documentation of the Retail Prices API (`2023-01-01-preview`) and what others read of it. A page has up to
1,000 rows and a link to the next; pages shift while prices change, so one region is asked at a time. Spot is known by the
word in the meter's name alone; its price is 0 where it is unknown. Which GPUs a size has is in no answer that needs no
account: it is read from the size's name by the table here, from Microsoft's documentation of sizes (2026-11). What is free
nobody says.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal

from markets.errors import ShapeDrift
from markets.facts.regions import regions
from markets.offer import Confidentiality, Offer, Pricing
from markets.provider.api import ProviderApi, Reach, together
from markets.provider.listing import MIB_PER_GIB, Said, distinct, offer
from markets.provider.shape import Shape, rows

MARKET = "azure"
REACH = Reach("https://prices.azure.com", timeout_s=60)
PRICES = "/api/retail/prices"
VERSION = "2023-01-01-preview"
AT_ONCE = 4
NOTICE_S = 30
EGRESS_PER_GB = Decimal("0.0875")
SOURCE = "Azure Retail Prices API"
# China has prices and accounts of its own.
PUBLIC_REGIONS = tuple(
    region for provider, region in regions() if provider == MARKET and not region.startswith("china")
)


@dataclass(frozen=True, slots=True)
class Series:
    """Sizes of one pattern: the number in the name (vCPUs) → how many GPUs, or which part of one."""

    pattern: str
    device: str
    form: str | None
    gib: int
    gpus: Mapping[int, int | Decimal]
    confidentiality: Confidentiality = "none"
    is_retired: bool = False


_QUARTER, _THIRD, _SIXTH, _HALF = Decimal("0.25"), Decimal(1) / 3, Decimal(1) / 6, Decimal("0.5")
SERIES: tuple[Series, ...] = (
    Series(r"NC(\d+)as_T4_v3", "T4", None, 16, {4: 1, 8: 1, 16: 1, 64: 4}),
    Series(r"NC(\d+)ads_A100_v4", "A100", "PCIe", 80, {24: 1, 48: 2, 96: 4}),
    Series(r"NC(\d+)r?s_v3", "V100", "PCIe", 16, {6: 1, 12: 2, 24: 4}),
    Series(r"NC(\d+)adi?s_H100_v5", "H100", "NVL", 94, {40: 1, 80: 2}),
    Series(r"NCC(\d+)ads_H100_v5", "H100", "NVL", 94, {40: 1}, confidentiality="gpu_tee"),
    Series(r"ND(\d+)asr_(?:A100_)?v4", "A100", "SXM4", 40, {96: 8}),
    Series(r"ND(\d+)amsr?_A100_v4", "A100", "SXM4", 80, {96: 8}),
    Series(r"ND(\d+)is(?:r|rf|f|_flex|_noIB)?_H100_v5", "H100", "SXM5", 80, {96: 8}),
    Series(r"ND(\d+)isr_H200_v5", "H200", "SXM5", 141, {96: 8}),
    Series(r"ND(\d+)isr?_MI300X_v5", "MI300X", None, 192, {96: 8}),
    Series(r"ND(\d+)isr_(?:NDR_)?GB200_v6", "GB200", None, 0, {128: 4}),
    Series(r"ND(\d+)r?s_v2", "V100", "SXM2", 32, {40: 8}),
    Series(r"NV(\d+)adm?s_A10_v5", "A10", None, 24, {6: _SIXTH, 12: _THIRD, 18: _HALF, 36: 1, 72: 2}),
    Series(r"NV(\d+)adm?s_V710_v5", "V710", None, 24, {4: _SIXTH, 8: _THIRD, 12: _HALF, 24: 1, 28: 1}),
    Series(r"NG(\d+)adm?s_V620(?:_v1)?", "V620", None, 32, {8: _QUARTER, 16: _HALF, 32: 1}),
    Series(r"NV(\d+)s_v3", "M60", None, 8, {12: 1, 24: 2, 48: 4}),
    Series(r"NC(\d+)r?", "K80", None, 12, {6: 1, 12: 2, 24: 4}, is_retired=True),
    Series(r"NC(\d+)r?s_v2", "P100", None, 16, {6: 1, 12: 2, 24: 4}, is_retired=True),
    Series(r"ND(\d+)r?s", "P40", None, 24, {6: 1, 12: 2, 24: 4}, is_retired=True),
    Series(r"NV(\d+)(?:s_v2)?", "M60", None, 8, {6: 1, 12: 2, 24: 4}, is_retired=True),
)


class AzureSource:
    """`regions` by Azure's names; by default all that the region table has."""

    name = MARKET

    def __init__(self, reach: Reach = REACH, *, regions: Sequence[str] = ()) -> None:
        self._api = ProviderApi(MARKET, reach)
        self._regions = tuple(regions) or PUBLIC_REGIONS

    async def offers(self) -> list[Offer]:
        at = datetime.now(UTC)
        found = await together(*map(self._region, self._regions), at_once=AT_ONCE)
        return [each for items in found for each in distinct(rows(_in_force(items, at), lambda row: _of(row, at)))]

    async def close(self) -> None:
        await self._api.close()

    async def _region(self, region: str) -> list[Shape]:
        conditions = (
            "serviceName eq 'Virtual Machines'",
            "priceType eq 'Consumption'",
            f"armRegionName eq '{region}'",
            "contains(armSkuName, 'Standard_N')",
            "contains(productName, 'Windows') eq false",
        )

        async def ask(link: str) -> Shape:
            if link:
                return await self._api.follow(link)
            return await self._api.get(PRICES, {"api-version": VERSION, "$filter": " and ".join(conditions)})

        def after(page: Shape) -> str | None:
            link = page.get("NextPageLink")
            return link.text() if link and link.value else None

        return [item for page in await self._api.pages(ask, "", after) for item in page["Items"].each()]


def _in_force(items: Sequence[Shape], at: datetime) -> list[Shape]:
    """Of several rows of one meter the one that is billed now comes last: the primary region's, then the newest."""

    def rank(row: Shape) -> tuple[bool, str]:
        primary = row.get("isPrimaryMeterRegion")
        return primary is None or primary.flag(), _since(row)

    now = at.strftime("%Y-%m-%dT%H:%M:%SZ")
    return sorted((row for row in items if _since(row) <= now), key=rank)


def _since(row: Shape) -> str:
    since = row.get("effectiveStartDate")
    return since.text() if since else ""


def _of(row: Shape, at: datetime) -> Iterator[Offer]:
    sku, meter = row["armSkuName"].text(), row["meterName"].text()
    words = f"{meter} {row['skuName'].text()} {row['productName'].text()}"
    if row["type"].text() != "Consumption" or re.search(r"Low Priority|Dedicated|Windows|CloudServices", words):
        return
    if row["unitOfMeasure"].text() != "1 Hour":
        raise ShapeDrift(f"{row.where}.unitOfMeasure is {row['unitOfMeasure'].text()!r}, not '1 Hour'")
    if sku.startswith("Standard_NP"):  # programmable gate arrays
        return
    series, gpus = gpus_of(sku)
    is_spot = "Spot" in words
    pricing: Pricing = "spot" if is_spot else "on_demand"
    price, region = row["retailPrice"].number(), row["armRegionName"].text()
    yield offer(
        Said(
            market=MARKET,
            sku=sku,
            pricing=pricing,
            launch="vm",
            price=price,
            currency=row["currencyCode"].text(),
            source=SOURCE,
            raw={"sku": sku, "region": region, "meter": meter, "price": str(price), "since": _since(row)},
            device=series.device if series else sku,
            count=gpus if isinstance(gpus, int) else 1,
            fraction=gpus if isinstance(gpus, Decimal) else Decimal(1),
            memory_mib=series.gib * MIB_PER_GIB if series else 0,
            form=series.form if series else None,
            region=region,
            egress_per_gb=EGRESS_PER_GB,
            interruption_per_hour=None if is_spot else Decimal(0),
            notice_s=NOTICE_S if is_spot else 0,
            confidentiality=series.confidentiality if series else "none",
            not_for_sale="a series that Azure has retired" if series and series.is_retired else None,
        ),
        at,
    )


def gpus_of(sku: str) -> tuple[Series | None, int | Decimal]:
    """The series of a size and its GPUs; no series: a size that the table does not know, which is listed and never chosen.

    >>> gpus_of("Standard_ND96isr_H100_v5")[1], gpus_of("Standard_NV6ads_A10_v5")[1] < 1, gpus_of("Standard_NX1_v9")
    (8, True, (None, 1))
    """
    for series in SERIES:
        match = re.fullmatch(f"Standard_{series.pattern}", sku)
        gpus = series.gpus.get(int(match[1])) if match else None
        if gpus is not None:
            return series, gpus
    return None, 1
