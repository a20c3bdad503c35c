"""EC2's instance types as our accelerators. Pure: `DescribeInstanceTypes` in, `MachineType` out.

NVIDIA's and AMD's devices are EC2's `GpuInfo`, and Gaudi's; Trainium and Inferentia are `NeuronInfo`; others are
`InferenceAcceleratorInfo`. What the accelerator table does not know, and what our images do not run on, is listed with the
reason and never chosen: what is not in the list nobody can ask about.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from decimal import Decimal
from types import MappingProxyType
from typing import Any

from markets.facts.accelerators import Identified, identify
from markets.offer import Accelerator

# EC2 does not say how a device is mounted: of these, which also exist as cards, it has the SXM board.
_BOARDS = frozenset({"V100", "A100", "H100", "H200", "B200", "B300"})
# What EC2 says of these is not the device's own memory: 512 GiB of a Trainium2, which has 96 (answers recorded in 2025).
_NOT_ITS_MEMORY = frozenset({("Trainium2", 524_288)})
# Service quotas count vCPUs of whole families: (on-demand code, spot code).
_G = ("L-DB2E81BA", "L-3819A6DF")
_P5 = ("L-417A185B", "L-C4BD4855")
_STANDARD_CODES = ("L-1216C47A", "L-34B43A08")
_QUOTAS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "g": _G,
        "gr": _G,
        "vt": _G,
        "p": ("L-417A185B", "L-7212CCBC"),
        "inf": ("L-1945791B", "L-B5D1601B"),
        "trn": ("L-2C3B7624", "L-6B0D517C"),
        "dl": ("L-6E869C2A", "L-85EED4F7"),
    }
)
_STANDARD = frozenset("acdhimrtz")
_APART = frozenset({"hpc", "mac"})


@dataclass(frozen=True, slots=True)
class MachineType:
    """One instance type. `problem`: why it is listed and never chosen."""

    name: str
    vcpus: int
    accelerator: Accelerator
    problem: str | None = None


def machine_type(raw: Mapping[str, Any]) -> MachineType | None:
    """The type as it is listed. None where there is nothing to compute models with (gate arrays, video encoders), and for
    machines of processors alone that are not x86-64, which our images need."""
    found = _device(raw)
    runs = "x86_64" in raw["ProcessorInfo"]["SupportedArchitectures"]
    if found is None or not (runs or found.accelerator.count or found.problem):
        return None
    problem = found.problem or (None if runs else "its processors are not x86-64, which our images need")
    return MachineType(raw["InstanceType"], raw["VCpuInfo"]["DefaultVCpus"], found.accelerator, problem)


def _device(raw: Mapping[str, Any]) -> Identified | None:
    devices = raw.get("GpuInfo", {}).get("Gpus") or raw.get("NeuronInfo", {}).get("NeuronDevices")
    devices = devices or raw.get("InferenceAcceleratorInfo", {}).get("Accelerators") or []
    if not devices:
        others = any(raw.get(other) for other in ("FpgaInfo", "MediaAcceleratorInfo"))
        return None if others else Identified(Accelerator())
    if len(devices) > 1:
        mixed = " + ".join(each.get("Name", "unnamed") for each in devices)
        return identify(mixed, count=sum(each.get("Count", 0) for each in devices))
    return _of_one_kind(devices[0])


def _of_one_kind(device: Mapping[str, Any]) -> Identified:
    """A share of a device is listed as one, whose `Count` is 0 in EC2's words and whose memory is the share's."""
    name, memory = device.get("Name", "unnamed"), device.get("MemoryInfo", {}).get("SizeInMiB")
    share = Decimal(str(device.get("GpuPartitionSize", 1)))
    said = None if share < 1 or (name, memory) in _NOT_ITS_MEMORY else memory
    form = "SXM" if name in _BOARDS else None
    count = device.get("Count", 0) if share == 1 else max(1, device.get("LogicalGpuCount", 1))
    found = identify(name, count=count, memory_mib=said, form=form, fraction=share)
    if share < 1 and not found.problem:
        return replace(found, problem=f"a slice ({share}) of an accelerator, whose speed is not known")
    return found


def quota_code(name: str, *, is_spot: bool) -> str | None:
    """Which service quota (in vCPUs) limits this type; None for families whose quota we do not know.

    >>> quota_code("g5.xlarge", is_spot=True), quota_code("p5en.48xlarge", is_spot=False)
    ('L-3819A6DF', 'L-417A185B')
    >>> quota_code("u-6tb1.metal", is_spot=True) is None, quota_code("inf2.xlarge", is_spot=True)
    (True, 'L-B5D1601B')
    """
    family = name.partition(".")[0]
    letters = re.split(r"[^a-z]", family, maxsplit=1)[0]
    codes = _QUOTAS.get(letters)
    if family.startswith("p5"):
        codes = _P5
    elif codes is None and letters[:1] in _STANDARD and letters not in _APART:
        codes = _STANDARD_CODES
    return codes[is_spot] if codes else None
