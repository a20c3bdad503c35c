"""Lambda: a type with room in two regions, one sold out, one of a description that names no form."""

from __future__ import annotations

from markets.sources.lambda_cloud import LambdaSource
from tests.markets.sources.cases import Case
from tests.markets.sources.document import official


def kind(name: str, gpu: str, count: int, cents: int, *regions: tuple[str, str]) -> dict[str, object]:
    specs = {"vcpus": 26, "memory_gib": 225, "storage_gib": 2800, "gpus": count}
    described = {"name": name, "description": f"{count}x {gpu}", "gpu_description": gpu, "price_cents_per_hour": cents}
    where = [{"name": region, "description": words} for region, words in regions]
    return {"instance_type": {**described, "specs": specs}, "regions_with_capacity_available": where}


TYPES = {
    "gpu_8x_h100_sxm5": kind(
        "gpu_8x_h100_sxm5", "H100 (80 GB SXM5)", 8, 2392, ("us-south-1", "Texas, USA"), ("europe-central-1", "Frankfurt, Germany")
    ),
    "gpu_1x_a10": kind("gpu_1x_a10", "A10 (24 GB PCIe)", 1, 75),
    "gpu_1x_gh200": kind("gpu_1x_gh200", "GH200 (96 GB)", 1, 149, ("us-east-3", "Washington, DC")),
}  # fmt: skip

CASE = Case(
    name="lambda",
    make=LambdaSource,
    answers={"GET /api/v1/instance-types": {"data": TYPES}},
    offers=4,
    credentials={"api_key": "secret_lambda_key"},
    document=lambda: official("lambda", "openapi.json"),
)
