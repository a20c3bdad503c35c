"""Vultr: whole GPUs, a slice, bare metal, a place without a name, a plan that is not sold; two pages of plans."""

from __future__ import annotations

from typing import Any

from markets.sources.vultr import VultrSource
from tests.markets.sources.cases import Case
from tests.markets.sources.document import official
from tests.markets.sources.loopback import paged


def page(member: str, *rows: dict[str, Any], following: str = "") -> dict[str, Any]:
    return {member: list(rows), "meta": {"total": len(rows), "links": {"next": following, "prev": ""}}}


def plan(sku: str, *places: str, **facts: Any) -> dict[str, Any]:
    row = {"id": sku, "vcpu_count": 12, "ram": 122880, "disk": 1400, "disk_count": 1, "bandwidth": 10240}
    return row | {"monthly_cost": 1750, "hourly_cost": 2.397, "type": "vcg", "locations": list(places)} | facts


A100 = plan("vcg-a100-12c-120g-80vram", "ewr", "", gpu_vram_gb=80, gpu_type="NVIDIA_A100")
SLICE = plan("vcg-a100-1c-6g-4vram", "ewr", gpu_vram_gb=4, gpu_type="NVIDIA_A100", hourly_cost=0.123)
CPU = plan("vc2-1c-1gb", "ams", type="vc2", hourly_cost=0)
MI325X = plan(
    "vcg-mi325x-252c-2872g-1536vram", hourly_cost=36.92, type="vdm", deploy_ondemand=False, deploy_preemptible=True,
    hourly_cost_preemptible=30.5, gpu_brand="AMD",
)  # fmt: skip
H100 = {
    "id": "vbm-112c-2048gb-8-h100-gpu", "cpu_count": 112, "cpu_threads": 224, "cpu_model": "Platinum 8480+", "ram": 2097152,
    "bandwidth": 15360, "monthly_cost": 16074, "hourly_cost": 23.92, "hourly_cost_preemptible": 18.4, "type": "NVMe",
    "locations": ["ams"],
}  # fmt: skip
REGIONS = [
    {"id": "ewr", "city": "New Jersey", "country": "US", "continent": "North America", "options": []},
    {"id": "ams", "city": "Amsterdam", "country": "NL", "continent": "Europe", "options": []},
]
FIRST, SECOND = page("plans", A100, CPU, following="1"), page("plans", SLICE, MI325X)
OTHERS = {"GET /v2/plans-metal": page("plans_metal", H100), "GET /v2/regions": page("regions", *REGIONS)}

CASE = Case(
    name="vultr",
    make=lambda _, reach: VultrSource(reach),
    answers={"GET /v2/plans": paged([FIRST, SECOND], "cursor"), **OTHERS},
    offers=5,
    is_public=True,
    looping={"GET /v2/plans": paged([FIRST, page("plans", SLICE, following="1")], "cursor"), **OTHERS},
    twice={
        "GET /v2/plans": paged([FIRST, page("plans", A100, following="2"), SECOND], "cursor"),
        **OTHERS,
    },
    document=lambda: official("vultr", "swagger-2025-08.json", base="/v2"),
)
