"""Oracle: a virtual machine that may be preempted, bare metal, a shape that is hidden, one whose part has no price."""

from __future__ import annotations

from typing import Any

from markets.sources.oci import PRICES_PATH, SHAPES_PATH, OciSource
from tests.markets.sources.cases import Case


def shape(name: str, gpus: int | None, part: str, **facts: Any) -> dict[str, Any]:
    row = {"name": name, "hidden": False, "status": "ACTIVE", "allowPreemptible": True, "bundleMemoryQty": 240}
    row |= {"gpuQty": gpus, "gpuMemoryQty": 24, "processorType": {"value": "arm"}, "subType": {"value": "gpu"}}
    row |= {"shapeType": {"value": name[:2].lower()}}
    return row | {"products": [{"partNumber": part, "qty": 15, "type": {"value": "ocpu"}}]} | facts


def product(part: str, usd: float, metric: str = "GPU Per Hour") -> dict[str, Any]:
    prices = [{"model": "PAY_AS_YOU_GO", "value": usd}]
    local = [{"currencyCode": "USD", "prices": prices}]
    return {
        "partNumber": part,
        "displayName": "",
        "metricName": metric,
        "serviceCategory": "",
        "billingModel": "UCM",
        "pricetype": "HOUR",
        "currencyCodeLocalizations": local,
    }


SHAPES = [
    shape("VM.GPU.A10.2", 2, "B95909"),
    shape("BM.GPU.H100.8", 8, "B98415"),
    shape("BM.GPU4.8", 8, "B92740", hidden=True),
    shape("BM.GPU.L40S.4", 4, "B109479", allowPreemptible=False),
    shape("BM.Standard.E4.128", None, "B93113", subType={"value": "standard"}),
]
PRODUCTS = [product("B95909", 2), product("B98415", 10), product("B88287", 0.3097, "OCPU Per Hour")]

CASE = Case(
    name="oci",
    make=lambda _, reach: OciSource(reach, regions=("eu-frankfurt-1",)),
    answers={f"GET {SHAPES_PATH}": {"items": SHAPES}, f"GET {PRICES_PATH}": {"items": PRODUCTS}},
    offers=4,
    is_public=True,
)
