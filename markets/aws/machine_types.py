"""EC2's instance types as our accelerators. Pure: `DescribeInstanceTypes` in, `MachineType` out."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from markets.offer import Accelerator

# (EC2's own name, at least this many MiB) → our name and form factor. One name can be two devices: A100 with 40 and 80 GB.
_DEVICES: tuple[tuple[str, int, str, str], ...] = (
    ("T4", 0, "t4", "pcie"),
    ("A10G", 0, "a10g", "pcie"),
    ("L4", 0, "l4", "pcie"),
    ("L40S", 0, "l40s", "pcie"),
    ("RTX PRO SERVER 6000", 0, "rtx-pro-6000", "pcie"),
    ("V100", 30_000, "v100-sxm-32", "sxm"),
    ("V100", 0, "v100-sxm-16", "sxm"),
    ("A100", 70_000, "a100-sxm-80", "sxm"),
    ("A100", 0, "a100-sxm-40", "sxm"),
    ("H100", 0, "h100-sxm", "sxm"),
    ("H200", 0, "h200-sxm", "sxm"),
    ("B200", 0, "b200-sxm", "sxm"),
    ("B300", 0, "b300-sxm", "sxm"),
)
# Service quotas count vCPUs of whole families: (on-demand code, spot code).
_G = ("L-DB2E81BA", "L-3819A6DF")
_P5 = ("L-417A185B", "L-C4BD4855")
_STANDARD_CODES = ("L-1216C47A", "L-34B43A08")
_QUOTAS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {"g": _G, "gr": _G, "vt": _G, "p": ("L-417A185B", "L-7212CCBC")}
)
_STANDARD = frozenset("acdhimrtz")
_APART = frozenset({"dl", "inf", "hpc", "trn", "mac"})


@dataclass(frozen=True, slots=True)
class MachineType:
    """One instance type that we can use."""

    name: str
    vcpus: int
    accelerator: Accelerator


def machine_type(raw: Mapping[str, Any]) -> MachineType | None:
    """The type, or None when our images do not run there: not x86-64, an unknown device, or a fraction of one."""
    if "x86_64" not in raw["ProcessorInfo"]["SupportedArchitectures"]:
        return None
    accelerator = _accelerator(raw)
    if accelerator is None:
        return None
    return MachineType(raw["InstanceType"], raw["VCpuInfo"]["DefaultVCpus"], accelerator)


def _accelerator(raw: Mapping[str, Any]) -> Accelerator | None:
    gpus = raw.get("GpuInfo", {}).get("Gpus", [])
    if not gpus:
        others = ("InferenceAcceleratorInfo", "NeuronInfo", "FpgaInfo", "MediaAcceleratorInfo")
        return None if any(raw.get(other) for other in others) else Accelerator()
    gpu = gpus[0]
    if len(gpus) != 1 or gpu.get("Manufacturer") != "NVIDIA" or gpu.get("GpuPartitionSize", 1) != 1:
        return None
    memory = gpu["MemoryInfo"]["SizeInMiB"]
    for name, at_least, ours, form in _DEVICES:
        if gpu["Name"] == name and memory >= at_least:
            return Accelerator("nvidia", ours, form, memory, gpu["Count"])
    return None


def quota_code(name: str, *, is_spot: bool) -> str | None:
    """Which service quota (in vCPUs) limits this type; None for families whose quota we do not know.

    >>> quota_code("g5.xlarge", is_spot=True), quota_code("p5en.48xlarge", is_spot=False)
    ('L-3819A6DF', 'L-417A185B')
    >>> quota_code("u-6tb1.metal", is_spot=True) is None, quota_code("inf2.xlarge", is_spot=True) is None
    (True, True)
    """
    family = name.partition(".")[0]
    letters = re.split(r"[^a-z]", family, maxsplit=1)[0]
    codes = _QUOTAS.get(letters)
    if family.startswith("p5"):
        codes = _P5
    elif letters[:1] in _STANDARD and letters not in _APART:
        codes = _STANDARD_CODES
    return codes[is_spot] if codes else None
