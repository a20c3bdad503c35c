"""Vast.ai: a verified data center, a host without a place, a bid, and a bid that is unknown."""

from __future__ import annotations

import json
from typing import Any

from aiohttp import web

from markets.sources.vast import VastSource
from tests.markets.sources.cases import Case
from tests.markets.sources.document import official


def ask(number: int, **facts: Any) -> dict[str, Any]:
    row = {"id": number, "machine_id": 7, "gpu_name": "RTX 4090", "num_gpus": 1, "gpu_ram": 24564, "gpu_frac": 0.25}
    row |= {
        "dph_base": 0.31,
        "dph_total": 0.333,
        "min_bid": 0.12,
        "storage_cost": 0.15,
        "rentable": True,
        "duration": 900_000.5,
    }
    row |= {"inet_up_cost": 0.004, "inet_down_cost": 0.002, "geolocation": "Montana, US", "hosting_type": 0}
    return row | {"verification": "verified", "cpu_cores": None, "is_bid": False} | facts


DEMAND = [
    ask(1, hosting_type=1, geolocation="Iceland, IS", gpu_name="H100 SXM", gpu_ram=81559, num_gpus=8, dph_base=16.0),
    ask(2, geolocation=None),
]
BIDS = [ask(1, is_bid=True), ask(3, min_bid=0, is_bid=True)]


def bundles(_: web.Request, body: bytes) -> dict[str, Any]:
    return {"offers": BIDS if json.loads(body).get("type") == "bid" else DEMAND}


CASE = Case(
    name="vast",
    make=VastSource,
    answers={"POST /api/v0/bundles/": bundles},
    offers=4,
    credentials={"api_key": "secret_vast_key"},
    is_public=True,
    document=lambda: official("vast", "openapi.yaml"),
)
