"""Koyeb: a GPU in two cities and a continent, a machine without one, a price that contradicts itself, one not open."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from markets.sources.koyeb import KoyebSource
from tests.markets.sources.cases import Case
from tests.markets.sources.document import official


def instance(
    name: str, gpu: str | None, second: str, hour: str, *regions: str, status: str = "available"
) -> dict[str, Any]:
    made: dict[str, Any] = {
        "id": name, "display_name": name, "price_per_second": second, "price_hourly": hour, "regions": list(regions),
        "status": status, "type": "gpu" if gpu else "cpu",
    }  # fmt: skip
    if gpu:
        made["gpu"] = {"count": 1, "brand": "NVIDIA", "memory": "48GB", "name": gpu}
    return made


INSTANCES = [
    instance("gpu-nvidia-l40s", "L40S", "0.0004306", "1.55", "fra", "was", "na"),
    instance("small", None, "0.0000022", "0.00792", "fra"),
    instance("gpu-nvidia-l4", "L4", "0.00019445", "1.55", "par"),
    instance("gpu-nvidia-a40", "A40", "0.0003", "1.08", "tyo", status="preview"),
]


def instances(request: web.Request, _: bytes) -> Any:
    """Three, then the rest: pages of three, whatever the limit."""
    offset = int(request.query["offset"])
    return {"instances": INSTANCES[offset : offset + 3], "limit": 3, "offset": offset, "count": len(INSTANCES)}


def shifted(request: web.Request, _: bytes) -> Any:
    """One came in at the front meanwhile: the last of the first page is the first of the second."""
    offset = int(request.query["offset"])
    rows = INSTANCES[:3] if offset == 0 else INSTANCES[2:]
    return {"instances": rows, "limit": 3, "offset": offset, "count": 5}


def round_and_round(_: web.Request, __: bytes) -> Any:
    """The first page for ever: an offset that nobody reads."""
    return {"instances": INSTANCES, "limit": 4, "offset": 0, "count": 1_000}


CASE = Case(
    name="koyeb",
    make=KoyebSource,
    answers={"GET /v1/catalog/instances": instances},
    offers=5,
    credentials={"api_key": "secret_koyeb_key"},
    looping={"GET /v1/catalog/instances": round_and_round},
    twice={"GET /v1/catalog/instances": shifted},
    document=lambda: official("koyeb", "openapi.json"),
)
