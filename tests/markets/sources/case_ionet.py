"""io.net, after answers that others recorded on 2026-06-13: a block of eight, one sold out, one without a price, a CPU."""

from __future__ import annotations

from typing import Any

from markets.sources.ionet import IonetSource
from tests.markets.sources.cases import Case
from tests.markets.sources.document import transcribed


def row(
    name: str, gpu: str, count: int, vram: int, price: float, location: str, *, sold_out: bool = False, **more: Any
) -> Any:
    return {
        "id": name, "deploy_id": name.partition("__")[0], "name": gpu, "num_cards": count, "supplier": "external",
        "sold_out": sold_out, "price": price, "vram_per_card": vram, "location": location, **more,
    }  # fmt: skip


H100 = row("8H100.80S.176V__FI", "H100", 8, 80, 27.875342465753423, "FI", interconnect="sxm5", nvlink=True, vcpu=176)
B300 = row("8B300.240V__FI", "B300", 8, 288, 63.86301369863014, "FI", sold_out=True, interconnect="sxm6", nvlink=True)
MACHINES = [
    H100,
    B300,
    row("1CPU__US", "", 0, 0, 0.1, "US"),
    row("1L40S.0V__US", "L40S", 1, 48, 0, "US"),
]
CONTAINERS = [
    {**{name: H100[name] for name in ("id", "name", "num_cards", "sold_out", "price", "location", "vram_per_card")},
     "brand_name": "NVIDIA", "available_replicas": 3},
    {**{name: B300[name] for name in ("id", "name", "num_cards", "sold_out", "price", "location", "vram_per_card")},
     "brand_name": "NVIDIA", "available_replicas": 2},
]  # fmt: skip

CASE = Case(
    name="io-net",
    make=IonetSource,
    answers={
        "GET /v1/io-cloud/vmaas/hardware": {"data": {"hardware": MACHINES}},
        "GET /v1/io-cloud/caas/hardware": {"data": {"hardware": CONTAINERS}},
    },
    offers=3,
    credentials={"api_key": "secret_ionet_key"},
    is_public=True,
    base_path="/v1/io-cloud",
    document=lambda: transcribed("ionet.yaml", base="/v1/io-cloud"),
    undocumented=frozenset({"GET /v1/io-cloud/caas/hardware"}),
)
