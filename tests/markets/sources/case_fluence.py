"""Fluence, after the examples of its documentation: a container plan in two countries, machines, a market of ours among them."""

from __future__ import annotations

from typing import Any

from markets.sources.fluence import FluenceSource
from tests.markets.sources.cases import Case
from tests.markets.sources.document import transcribed


def gpu(model: str, vram: str, interface: str) -> dict[str, str]:
    return {"vendor": "nvidia", "model": model, "vram": vram, "interface": interface}


def priced(hour: float, upfront: int = 3) -> dict[str, Any]:
    return {"hour": hour, "upfront_hours": upfront, "currency": "USDC"}


def size(**more: int) -> dict[str, Any]:
    return {
        "vcpu": {"count": 16},
        "memory": {"count": 128, "units": "Gi"},
        "storage": {"count": 120, "units": "Gi"},
        **more,
    }


PLANS = [
    {
        "plan": {
            "id": "36cdb646-1246-42d8-b2d1-9480ca546536", "name": "h200-141gi-sxm-1gpu", "supply": size(gpu_count=1),
            "gpu_model": gpu("h200", "141Gi", "SXM"), "pricing": priced(2.96),
        },
        "attributes": {"location": ["US", "EU"]},
    }
]  # fmt: skip


def option(name: str, location: str, provider: str, hour: float, kind: str = "VM") -> dict[str, Any]:
    more = {"deployment_type": kind, "pricing": priced(hour), "nvlink": False, "os_options": ["Ubuntu Server 22.04"]}
    return {"id": name, "location": location, "provider": provider, **size(), **more}


def group(model: dict[str, str], count: int, *options: dict[str, Any]) -> dict[str, Any]:
    cheapest = min(each["pricing"]["hour"] for each in options)
    number = {
        "gpu_count": count, "minimum_price": cheapest, "options_available_total": len(options),
        "providers_available_total": len({each["provider"] for each in options}),
        "data_center_available_total": len({each["location"] for each in options}),
        "locations": sorted({each["location"] for each in options}),
        "providers": sorted({each["provider"] for each in options}), "options": list(options),
    }  # fmt: skip
    return {"gpu_model": model, "minimum_price": cheapest, "availability_by_number": [number]}


A100 = gpu("a100", "80Gi", "pcie")
MACHINES = [
    group(
        A100,
        1,
        option("d8312018", "us-central-3", "massed-compute", 1.07),
        option("kris", "kristiansand-norway-2", "sesterce", 1.2),
        option("same", "dulles-usa-1", "lambda", 1.29),
    )
]
METAL = [group(gpu("h100", "80Gi", "sxm"), 8, option("metal", "tokyo-japan-2", "sesterce", 20.0, "BAREMETAL"))]

CASE = Case(
    name="fluence",
    make=FluenceSource,
    answers={
        "GET /gpu/plans/": PLANS,
        "GET /gpu/plans/vms": {"data": MACHINES},
        "GET /gpu/plans/baremetal": {"data": METAL},
    },
    offers=6,
    credentials={"api_key": "secret_fluence_key"},
    base_path="/gpu",
    document=lambda: transcribed("fluence.yaml", base="/gpu"),
)
