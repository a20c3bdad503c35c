"""Thunder Compute, after answers of mid 2026: aliases without a mode, disks and vCPUs among the prices, one shape unpriced."""

from __future__ import annotations

from typing import Any

from markets.sources.thunder import ThunderSource
from tests.markets.sources.cases import Case
from tests.markets.sources.document import official


def shape(name: str, vram: int, count: int, mode: str, *vcpus: int) -> dict[str, Any]:
    storage = {"min": 100, "max": 500}
    return {
        "displayName": name, "vramGB": vram, "gpuCount": count, "mode": mode, "vcpuOptions": list(vcpus),
        "ramPerVCPUGiB": 8, "storageGB": storage,
    }  # fmt: skip


A100, H100 = "NVIDIA A100 (80GB)", "NVIDIA H100"
SPECS = {
    "a100xl_x1": shape(A100, 80, 1, "", 8, 12, 16),
    "a100xl_x1_prototyping": shape(A100, 80, 1, "prototyping", 8, 12, 16),
    "a100xl_x1_production": shape(A100, 80, 1, "production", 15),
    "h100_x8_production": shape(H100, 80, 8, "production", 120),
    "a6000_x1": shape("NVIDIA RTX A6000", 48, 1, "", 6, 8),
    "l40_x1_production": shape("NVIDIA L40", 48, 1, "production", 10),
}
PRICES = {
    "a100xl_x1": 1.09,
    "a100xl_x1_prototyping": 1.09,
    "a100xl_x1_production": 1.64,
    "h100_x8_production": 19.92,
    "a6000_x1": 0.35,
    "l40s_x1_production": 1.49,
    "a100xl": 0.78,
    "additional_vcpus": 0.04,
    "disk_gb": 0.0003,
    "snapshot_gb": 0.00006849,
}

CASE = Case(
    name="thunder",
    make=lambda _, reach: ThunderSource(reach),
    answers={"GET /v1/pricing": {"pricing": PRICES}, "GET /v1/specs": {"specs": SPECS}},
    offers=5,
    is_public=True,
    base_path="/v1",
    document=lambda: official("thunder", "swagger.json", base="/v1"),
)
