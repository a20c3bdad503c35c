"""What accelerators can do at most, by the words in their names. Sources: see NOTICE (vendors' published figures, dense)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache


@dataclass(frozen=True, slots=True)
class Hardware:
    """One accelerator: memory in GB (10⁹), its bandwidth in TB/s, dense 16-bit and 8-bit arithmetic in TFLOP/s.

    `tflops_8` equals `tflops_16` where there is no faster 8-bit arithmetic.
    """

    id: str
    memory_gb: float
    bandwidth_tbs: float
    tflops_16: float
    tflops_8: float


# The words that must all be in a name, the most particular row first: H100s differ 2.6x by form, A100s by memory.
_TABLE: tuple[tuple[str, Hardware], ...] = (
    ("gb300", Hardware("gb300", 298.0, 8.0, 2500, 5000)),
    ("gb200", Hardware("gb200", 198.7, 8.0, 2500, 5000)),
    ("gh200", Hardware("gh200", 96.0, 4.0, 989, 1978)),
    ("b300", Hardware("b300", 288.4, 7.75, 2250, 4500)),
    ("b200", Hardware("b200", 193.3, 7.7, 2250, 4500)),
    ("h200", Hardware("h200", 151.4, 4.8, 989, 1978)),
    ("h100 pcie", Hardware("h100-pcie", 85.9, 2.0, 756, 1513)),
    ("h100 nvl", Hardware("h100-nvl", 100.9, 3.9, 835, 1671)),
    ("h100", Hardware("h100", 85.9, 3.35, 989, 1978)),
    ("a100 40gb", Hardware("a100-40gb", 42.9, 1.555, 312, 312)),
    ("a100 40", Hardware("a100-40gb", 42.9, 1.555, 312, 312)),
    ("a100 pcie", Hardware("a100-pcie", 85.9, 1.935, 312, 312)),
    ("a100", Hardware("a100", 85.9, 2.039, 312, 312)),
    ("a30", Hardware("a30", 25.8, 0.933, 165, 165)),
    ("l40s", Hardware("l40s", 48.3, 0.864, 362, 733)),
    ("l4", Hardware("l4", 25.8, 0.300, 121, 242)),
    ("t4", Hardware("t4", 16.0, 0.320, 65, 65)),
    ("rtx pro 6000", Hardware("rtx-pro-6000", 102.6, 1.792, 468, 936)),
    ("5090", Hardware("rtx-5090", 34.4, 1.792, 210, 419)),
    ("4090", Hardware("rtx-4090", 25.8, 1.008, 165, 330)),
    ("3090", Hardware("rtx-3090", 25.8, 0.936, 71, 71)),
    ("mi355x", Hardware("mi355x", 288.0, 8.0, 2516, 5033)),
    ("mi350x", Hardware("mi350x", 288.0, 8.0, 2309, 4614)),
    ("mi325x", Hardware("mi325x", 256.0, 6.0, 1307, 2614)),
    ("mi300x", Hardware("mi300x", 192.0, 5.3, 1307, 2614)),
)


@cache
def hardware_of(name: str) -> Hardware | None:
    """The accelerator that a market's name means, None when it is not known here.

    >>> hardware_of("H100-SXM").id, hardware_of("NVIDIA H100 PCIe").id, hardware_of("l40s").id, hardware_of("l40")
    ('h100', 'h100-pcie', 'l40s', None)
    """
    words = " ".join(re.findall(r"[a-z0-9]+", name.lower()))
    for wanted, hardware in _TABLE:
        if all(re.search(rf"\b{word}\b", words) for word in wanted.split()):
            return hardware
    return None
