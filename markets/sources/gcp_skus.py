"""Google's billing SKUs as prices of parts: a core, a GiB of memory, a GPU, a TPU chip, a GiB of local SSD, by family, region
and pricing.

Google has no price of a machine: it is the sum of its parts. Pure. Source: the Cloud Billing Catalog API (discovery document
of 2026-11) and a page of SKUs recorded by others; which description means what, from Cyclenerd's mapping (Apache-2.0,
2026-08).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Literal

from markets.errors import ShapeDrift
from markets.provider.shape import Shape, rows

Part = Literal["core", "ram", "gpu", "tpu", "ssd"]
HOURS_A_MONTH = 730
NANO = Decimal("1e-9")
_UNITS = {"core": "h", "gpu": "h", "tpu": "h", "ram": "GiBy.h", "ssd": "GiBy.mo"}
# Other things with the same words: commitments, reservations, dedicated hosts, surcharges.
_OTHERS = re.compile(
    r"Commitment|Reserved|Sole Tenancy|Custom|Premium|suspended|DWS|Calendar|Flex|Upgrade|Confidential|vWS|Virtual Workstation|"
    r"Defined Duration|Subscription|Fixed Price|Capacity Optimized",
    re.IGNORECASE,
)
_INSTANCE = re.compile(
    r"^(?:Spot Preemptible )?(?P<family>[A-Z]\d[A-Za-z]*)(?: Predefined)? Instance (?P<part>Core|Ram)\b"
)
_GPU = re.compile(r"^(?:Nvidia )?(?P<gpu>.+?)(?: GPU)? (?:running|attached)\b", re.IGNORECASE)
# One chip an hour: `TpuV5e running in Iowa`, `TpuV6e attached to Spot Preemptible VMs running in …`, `TPU7x …`. v2 to v4 are
# priced by the device in a service of their own (`Tpu-v4 Pod`), and are not read.
_TPU = re.compile(r"^Tpu ?(?P<generation>V\d+[a-z]|7x)(?: (?:running|attached) |$)", re.IGNORECASE)
_SSD = re.compile(r"^SSD backed Local Storage\b")
# How SKUs call the accelerators that machine types name.
_GPUS = {
    "tesla t4": "nvidia-tesla-t4", "tesla v100": "nvidia-tesla-v100", "tesla p100": "nvidia-tesla-p100",
    "tesla p4": "nvidia-tesla-p4", "tesla a100": "nvidia-tesla-a100", "tesla a100 80gb": "nvidia-a100-80gb",
    "l4": "nvidia-l4", "h100 80gb": "nvidia-h100-80gb", "h100 80gb mega": "nvidia-h100-mega-80gb",
    "h100 80gb plus": "nvidia-h100-mega-80gb", "h200 141gb": "nvidia-h200-141gb", "b200": "nvidia-b200",
    "rtx 6000 96gb": "nvidia-rtx-pro-6000",
}  # fmt: skip
# Families of SKUs that are written differently from those of machine types.
_FAMILIES = {
    "a2": "a2", "a3": "a3", "a3plus": "a3-megagpu", "a3ultra": "a3-ultragpu", "a4": "a4", "g2": "g2", "g4": "g4", "n1": "n1",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class PartPrices:
    """US dollars an hour: (part, family or accelerator, region, is spot) → price of one. `disputed` ones have several: none."""

    by_part: dict[tuple[Part, str, str, bool], Decimal] = field(default_factory=dict)
    disputed: set[tuple[Part, str, str, bool]] = field(default_factory=set)

    def of(self, part: Part, what: str, region: str, *, is_spot: bool) -> Decimal | None:
        key = (part, what, region, is_spot)
        return None if key in self.disputed else self.by_part.get(key)


def part_prices(skus: Iterable[Shape]) -> PartPrices:
    """The prices of all SKUs that mean a part of a machine. Raises ShapeDrift when two say different things of one part; of
    TPUs, whose SKUs are named in more ways and stand alone, that chip has no price there."""
    found = PartPrices()
    for key, price in rows(skus, _read):
        if found.by_part.setdefault(key, price) != price:
            part, what, region, is_spot = key
            if part == "tpu":
                found.disputed.add(key)
                continue
            raise ShapeDrift(
                f"gcp: two prices of {part} of {what} in {region} ({'spot' if is_spot else 'on demand'}): "
                f"{found.by_part[key]} and {price}"
            )
    return found


def _read(sku: Shape) -> Iterator[tuple[tuple[Part, str, str, bool], Decimal]]:
    description, usage = sku["description"].text(), sku["category"]["usageType"].text()
    meaning = _meaning(description)
    if meaning is None or usage not in ("OnDemand", "Preemptible"):
        return
    part, what = meaning
    times = sku["pricingInfo"].each()
    if not times:  # unknown, not free
        return
    expression = times[-1]["pricingExpression"]
    if expression["usageUnit"].text() != _UNITS[part]:
        raise ShapeDrift(f"{expression.where}.usageUnit of {description!r} is {expression['usageUnit'].text()!r}")
    # a first tier may be free; what is billed for good is the last
    tiers = expression["tieredRates"].each()
    if not tiers:  # unknown, not free
        return
    unit = tiers[-1]["unitPrice"]
    if unit["currencyCode"].text() != "USD":
        raise ShapeDrift(f"{unit.where}.currencyCode is {unit['currencyCode'].text()!r}, and USD was asked for")
    units, nanos = unit.get("units"), unit.get("nanos")
    price = (units.number() if units else Decimal(0)) + (nanos.number() if nanos else Decimal(0)) * NANO
    if price <= 0:  # unknown, not free
        return
    if part == "ssd":
        price /= HOURS_A_MONTH
    for region in sku["serviceRegions"].each():
        yield (part, what, region.text(), usage == "Preemptible"), price


def _meaning(description: str) -> tuple[Part, str] | None:
    """Which part of what, or None: most of 40,000 SKUs are something else.

    >>> _meaning("A2 Instance Core running in Americas"), _meaning("Spot Preemptible G2 Instance Ram running in Belgium")
    (('core', 'a2'), ('ram', 'g2'))
    >>> _meaning("Nvidia Tesla A100 80GB GPU attached to Spot Preemptible VMs running in Iowa")
    ('gpu', 'nvidia-a100-80gb')
    >>> _meaning("TpuV5e attached to Spot Preemptible VMs running in Singapore"), _meaning("DWS Defined Duration V5e")
    (('tpu', 'tpu-v5e'), None)
    >>> _meaning("Reserved A2 Instance Core in Americas"), _meaning("Commitment v1: Nvidia L4 GPU running in Iowa for 1 Year")
    (None, None)
    """
    if _OTHERS.search(description):
        return None
    if (instance := _INSTANCE.match(description)) is not None:
        family = _FAMILIES.get(instance["family"].lower())
        return None if family is None else ("core" if instance["part"] == "Core" else "ram", family)
    if _SSD.match(description):
        return "ssd", "local"
    if (tpu := _TPU.match(description)) is not None:
        return "tpu", f"tpu-{tpu['generation'].lower()}"
    gpu = _GPU.match(description)
    accelerator = _GPUS.get(gpu["gpu"].lower()) if gpu else None
    return ("gpu", accelerator) if accelerator else None
