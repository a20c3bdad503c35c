"""Azure: two regions, the first of two pages; spot, a spot price of 0, low priority, a row that is not in force yet."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from aiohttp import web

from markets.sources.azure import PRICES, AzureSource
from tests.markets.sources.cases import Case

REGIONS = ("eastus", "westeurope")


def item(sku: str, region: str, usd: float, meter: str | None = None, **facts: Any) -> dict[str, Any]:
    short = sku.removeprefix("Standard_").replace("_", " ")
    row = {
        "currencyCode": "USD",
        "tierMinimumUnits": 0.0,
        "retailPrice": usd,
        "unitPrice": usd,
        "armRegionName": region,
    }
    row |= {
        "location": region,
        "effectiveStartDate": "2026-03-01T00:00:00Z",
        "meterName": meter or short,
        "type": "Consumption",
    }
    row |= {
        "productName": "Virtual Machines NCads Series",
        "skuName": meter or short,
        "serviceName": "Virtual Machines",
    }
    return row | {"unitOfMeasure": "1 Hour", "isPrimaryMeterRegion": True, "armSkuName": sku} | facts


A100, H100, SLICE = "Standard_NC24ads_A100_v4", "Standard_ND96isr_H100_v5", "Standard_NV6ads_A10_v5"
EAST = (
    [
        item(A100, "eastus", 3.673),
        item(A100, "eastus", 0.84, "NC24ads A100 v4 Spot"),
        item(A100, "eastus", 0.73, "NC24ads A100 v4 Low Priority"),
        item(A100, "eastus", 9.99, effectiveStartDate="2126-01-01T00:00:00Z"),
        item(A100, "eastus", 4.44, isPrimaryMeterRegion=False),
    ],
    [
        item(H100, "eastus", 98.32),
        item(H100, "eastus", 0, "ND96isr H100 v5 Spot"),
        item("Standard_NP10s", "eastus", 1.65),
    ],
)
WEST = ([item(SLICE, "westeurope", 0.53), item("Standard_NX96_B900_v9", "westeurope", 120.0)],)


def regional(pages: dict[str, list[str]]) -> Callable[[web.Request, bytes], Any]:
    """`pages`: region → the pages by name, one after the other; the link says which is next."""

    def answer(request: web.Request, _: bytes) -> dict[str, Any]:
        region = next(each for each in REGIONS if f"'{each}'" in request.query["$filter"])
        step = int(request.query.get("$skip", "0"))
        if step >= len(pages[region]):  # whoever counts by himself comes to a page of nothing
            return {"Items": [], "NextPageLink": None, "Count": 0}
        link = request.url.update_query({"$skip": str(step + 1)})
        items = CONTENT[pages[region][step]]
        following = str(link) if step + 1 < len(pages[region]) else None
        return {
            "BillingCurrency": "USD",
            "CustomerEntityType": "Retail",
            "Items": items,
            "NextPageLink": following,
            "Count": len(items),
        }

    return answer


CONTENT = {"east 1": EAST[0], "east 2": EAST[1], "west": WEST[0]}
GOOD = {"eastus": ["east 1", "east 2"], "westeurope": ["west"]}


def round_and_round(request: web.Request, _: bytes) -> dict[str, Any]:
    return {"Items": CONTENT["west"], "NextPageLink": str(request.url), "Count": 2}


CASE = Case(
    name="azure",
    make=lambda _, reach: AzureSource(reach, regions=REGIONS),
    answers={f"GET {PRICES}": regional(GOOD)},
    offers=6,
    is_public=True,
    looping={f"GET {PRICES}": round_and_round},
    twice={f"GET {PRICES}": regional({**GOOD, "eastus": ["east 1", "east 1", "east 2"]})},
)
