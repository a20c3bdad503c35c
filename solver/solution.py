"""What the program hands over to be made exact: raw values, and what they leave free for the rounding."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

# The stair keeps this part of the time free, so that rounding shares and the solver's tolerance cannot make work late. It is part
# of the model: a bound is one on plans that leave it free, unless it was solved for alone (`unserved_ppm`).
MARGIN_PPM = 100


@dataclass(frozen=True, slots=True)
class Solution:
    """Raw values: instances per (site, class), shares per (site, work), unserved part per work; cost bound in nano-USD.
    `taken`: of each group of twins the one that is served."""

    stopped_by: Literal["optimal", "gap"]
    bound_nano: int
    counts: dict[tuple[int, int], float]
    shares: dict[tuple[int, str], float]
    unserved: dict[str, float]
    taken: set[str] = field(default_factory=set)
