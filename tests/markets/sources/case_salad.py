"""SaladCloud: two classes, four priorities, asked for Norway and the US: `no` is a country and not a refusal."""

from __future__ import annotations

import json
from typing import Any

from aiohttp import web

from markets.sources.salad import SaladSource
from tests.markets.sources.cases import Case
from tests.markets.sources.document import official

RTX_4090 = "550e8400-e29b-41d4-a716-446655440000"
CLUSTER = "6ba7b810-9dad-11d1-80b4-00c04fd430c8"


def prices(**by_priority: str) -> list[dict[str, str]]:
    return [{"priority": priority, "price": price} for priority, price in by_priority.items()]


CLASSES = [
    {
        "id": RTX_4090, "name": "RTX 4090 (24 GB)", "gpu_class_type": "community", "is_high_demand": True,
        "prices": prices(high="0.330", medium="0.273", low="0.217", batch="0.160"),
    },
    {"id": CLUSTER, "name": "RTX 5090 (32 GB)", "gpu_class_type": "secure", "gpu_count": 8, "prices": prices(high="4.00")},
]  # fmt: skip
FREE = {"available_gpu_high": 21, "available_gpu_medium": 18, "available_gpu_low": 9, "available_gpu_batch": 0}
ORGANIZATION = "/api/public/organizations/acme"


def free(_: web.Request, body: bytes) -> Any:
    asked = json.loads(body)
    return {name: number if asked["country_codes"] == ["us"] else 0 for name, number in FREE.items()}


CASE = Case(
    name="salad",
    make=lambda keys, reach: SaladSource(keys, reach, organization="acme", countries=("US", "NO")),
    answers={
        f"GET {ORGANIZATION}/gpu-classes": {"items": CLASSES},
        f"POST {ORGANIZATION}/availability/sce-gpu-availability": free,
    },
    offers=10,
    credentials={"api_key": "secret_salad_key"},
    base_path="/api/public",
    document=lambda: official("salad", "salad-cloud.yaml", base="/api/public"),
)
