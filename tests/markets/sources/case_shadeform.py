"""Shadeform: three clouds, a type that is sold out in one region, a cloud that is also a market of ours."""

from __future__ import annotations

from typing import Any

from markets.sources.shadeform import ShadeformSource
from tests.markets.sources.cases import Case
from tests.markets.sources.document import official


def kind(
    cloud: str, shade: str, gpu: str, count: int, vram: int, cents: int, link: str, *places: tuple[str, bool, str]
) -> dict[str, Any]:
    return {
        "cloud": cloud,
        "shade_instance_type": shade,
        "cloud_instance_type": f"gpu_{count}x_{gpu.lower()}",
        "configuration": {
            "memory_in_gb": 225, "storage_in_gb": 1000, "vcpus": 26, "num_gpus": count, "gpu_type": gpu, "interconnect": link,
            "nvlink": False, "os_options": ["ubuntu22.04_cuda12.2_shade_os"], "vram_per_gpu_in_gb": vram,
            "gpu_manufacturer": "nvidia",
        },
        "hourly_price": cents,
        "deployment_type": "vm",
        "availability": [{"region": region, "available": has, "display_name": words} for region, has, words in places],
        "boot_time": {"min_boot_in_sec": 180, "max_boot_in_sec": 300},
    }  # fmt: skip


TYPES = [
    kind("hyperstack", "A6000", "A6000", 1, 48, 50, "pcie", ("canada-1", True, "Toronto, Canana"),
         ("oslo-norway-1", False, "NO, Oslo")),
    kind("massedcompute", "H100x8", "H100", 8, 80, 2392, "sxm5",
         ("us-central-1", True, "US, Wichita, KS")),
    kind("lambdalabs", "A100_80G", "A100_80G", 1, 80, 129, "sxm4",
         ("us-east-1", True, "US, Ashburn, VA")),
    kind("free", "L4", "L4", 1, 24, 0, "pcie", ("los-angeles-1", True, "CA, Los Angeles")),
]  # fmt: skip

CASE = Case(
    name="shadeform",
    make=ShadeformSource,
    answers={"GET /v1/instances/types": {"instance_types": TYPES}},
    offers=5,
    credentials={"api_key": "secret_shadeform_key"},
    base_path="/v1",
    document=lambda: official("shadeform", "openapi.yaml", base="/v1"),
)
