"""RunPod: without a key, types with and without stock and with a bid; with one, the catalogue's data centers."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from markets.sources.runpod import COUNTS, RunPodSource
from tests.markets.sources.cases import Case
from tests.markets.sources.document import official


def gpu_type(name: str, gib: int, secure: dict[int, tuple[float | None, float | None]], **facts: Any) -> dict[str, Any]:
    """A row of GraphQL; `secure` by count: (on demand, bid)."""
    none = {"minimumBidPrice": None, "uninterruptablePrice": None, "stockStatus": None}
    row = {"id": f"NVIDIA {name}", "displayName": name, "memoryInGb": gib, "secureCloud": True, "communityCloud": False}
    row |= {"securePrice": 2.99, "communityPrice": 2.69, "maxGpuCountSecureCloud": 8, "maxGpuCountCommunityCloud": 8}
    for count in COUNTS:
        asked, bid = secure.get(count, (None, None))
        row[f"secure{count}"] = none | {"uninterruptablePrice": asked, "minimumBidPrice": bid}
        row[f"community{count}"] = none
    return row | facts


TYPES = [
    # the bid saves nothing, as in 14 of 15 recorded rows
    gpu_type("H100 80GB HBM3", 80, {1: (2.69, 2.69), 2: (2.69, None)}, maxGpuCountSecureCloud=2),
    # nothing left at the moment: the list price stays, with capacity 0
    gpu_type("A40", 48, {}, maxGpuCountSecureCloud=1, securePrice=0.4),
    gpu_type("L4", 24, {}, maxGpuCountSecureCloud=1, securePrice=None),
]


def catalog(request: web.Request, _: bytes) -> dict[str, Any]:
    centers = [
        {"id": "EU-RO-1", "name": "EU Romania 1", "availability": "HIGH"},
        {"id": "US-CA-2", "name": "US California 2", "availability": "NONE"},
    ]
    row = {"id": "NVIDIA H100 80GB HBM3", "name": "H100 SXM", "pool": None, "manufacturer": "NVIDIA", "memory": 80}
    row |= {"secure": True, "community": False, "price": {"secure": 2.99, "community": 0}}
    row |= {"maxCount": {"secure": 1, "community": 0}, "availability": "HIGH", "dataCenters": centers}
    return {"gpus": [row]}


# With a key: the bid of GraphQL, and two data centers of the catalogue, for one GPU each.
CASE = Case(
    name="runpod",
    make=RunPodSource,
    answers={"POST /graphql": {"data": {"gpuTypes": TYPES}}, "GET /v2/catalog/gpus": catalog},
    offers=3,
    credentials={"api_key": "secret_runpod_key"},
    is_public=True,
    document=lambda: official("runpod", "rest-v2-openapi.json"),
    undocumented=frozenset({"POST /graphql"}),
)
