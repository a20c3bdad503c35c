"""Prime Intellect: two pages; secure and community, spot, prepaid, euros, a disk that costs extra, a node without GPUs."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from markets.sources.prime_intellect import PrimeIntellectSource
from tests.markets.sources.cases import Case
from tests.markets.sources.document import official


def item(cloud: str, gpu: str, count: int, gib: int, prices: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "cloudId": cloud, "gpuType": gpu, "socket": "SXM5", "provider": "hyperstack", "region": "canada",
        "dataCenter": "CANADA-1", "country": "CA", "gpuCount": count, "gpuMemory": gib, "stockStatus": "Available",
        "disk": {}, "vcpu": {}, "memory": {}, "security": "secure_cloud", "images": ["ubuntu_22_cuda_12"],
        "prices": {"currency": "USD", "isVariable": False} | prices, **more,
    }  # fmt: skip


DISK = {
    "minCount": 100,
    "defaultCount": 200,
    "maxCount": 1000,
    "pricePerUnit": 0.0001,
    "step": 1,
    "defaultIncludedInPrice": False,
}
FIRST = [
    item("h100", "H100_80GB", 8, 80, {"onDemand": 19.12}, disk=DISK, provisioningTime=10),
    item("h100-spot", "H100_80GB", 1, 80, {"onDemand": 1.35}, isSpot=True, stockStatus="Unavailable"),
]
SECOND = [
    item("4090", "RTX4090_24GB", 1, 24, {"communityPrice": 0.32, "onDemand": 0.74}, security="community_cloud", socket="PCIe",
         provider="runpod", country="US", dataCenter=None),
    item("l40s", "L40S_48GB", 1, 48, {"onDemand": 1.1, "currency": "EUR"}, provider="scaleway", socket="PCIe", country="FR",
         prepaidTime=24),
    item("cpu", "CPU_NODE", 0, 0, {"onDemand": 0.1}, socket="PCIe"),
    item("unknown", "B200_180GB", 8, 180, {"onDemand": None}, socket="SXM6", country="Atlantis"),
]  # fmt: skip


def pages(*rows: list[dict[str, Any]], total: int) -> Any:
    def answer(request: web.Request, _: bytes) -> Any:
        return {"items": rows[min(int(request.query["page"]), len(rows)) - 1], "totalCount": total}

    return answer


PATH = "GET /api/v1/availability/gpus"
CASE = Case(
    name="prime-intellect",
    make=PrimeIntellectSource,
    answers={PATH: pages(FIRST, SECOND, total=6)},
    offers=5,
    credentials={"api_key": "secret_prime_key"},
    looping={PATH: pages(FIRST, total=1_000_000)},
    twice={PATH: pages(FIRST, [FIRST[1], *SECOND], total=7)},
    document=lambda: official("prime-intellect", "compute-openapi.yml"),
)
