"""How much is done for a plan, in counts: no clock decides, so that the same snapshot gives the same plan.

Queues too large for a column per work and offer have three levels. `fast` is the first placement made exact, `normal` what the
broker does each tick, `certify` what is done where a plan and the proof of how good it is are worth a minute.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Effort = Literal["fast", "normal", "certify"]
EFFORTS: dict[str, Effort] = {"fast": "fast", "normal": "normal", "certify": "certify"}


@dataclass(frozen=True, slots=True)
class Counts:
    """`renewals` of a class (`renew`) and at most; `looks` for better prices of the bound on plans of classes, which guide the
    plan as well, and from there on all plans; works up to which deadlines are grouped finely."""

    renewals: int
    most_renewals: int
    looks: tuple[int, int]
    fine_works: int


# One renewal takes 1 to 4 ms: one of each class wins 1.2 % at 1,000 works and 500 offers, twelve 2.3 %; at 5,000 works and 2,000
# offers 400 win 0.2 %, 1,000 0.4 %. 700 at most instead of 400 are 0.06 to 0.27 % at 1,000 to 5,000 works, in the time that
# cheaper packing gave back; two of each class and 900 took 10 % more; one of three annealings at 1,000 works was 0.2 % dearer.
# From the prices of plans of classes to those of all plans, 60 looks instead of 15 raise the bound by 1.5 % at 5,000 works and at
# 20,000, 60 more by 0.6 % at 5,000.
NORMAL = Counts(renewals=1, most_renewals=700, looks=(150, 60), fine_works=500)
CERTIFY = Counts(renewals=12, most_renewals=20_000, looks=(400, 150), fine_works=2_000)


def counts(effort: Effort) -> Counts:
    return CERTIFY if effort == "certify" else NORMAL
