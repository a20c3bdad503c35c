"""What a spot policy is asked, and what it may answer: a job, the pools it may run in, and recorded availability."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]

# Where the machine is: the index of a zone for spot, or one of these.
IDLE = -1
ON_DEMAND = -2
Where = int
Policy = Literal["broker", "on-demand", "greedy", "last-moment", "uniform-progress", "clairvoyant"]


@dataclass(frozen=True, slots=True)
class Job:
    """`work_s` of one machine's time until `deadline_s` from now; each start first spends `restart_s`, which is paid."""

    work_s: float
    deadline_s: float
    restart_s: float

    def __post_init__(self) -> None:
        if self.work_s <= 0 or self.restart_s < 0:
            raise ValueError(f"work of {self.work_s} s with restarts of {self.restart_s} s is no job")


@dataclass(frozen=True, slots=True)
class Pools:
    """Spot of one kind of machine in some zones, by price per hour, and the cheapest on-demand anywhere allowed."""

    spot: tuple[float, ...]
    on_demand: float

    def price(self, where: Where) -> float:
        if where == IDLE:
            return 0.0
        return self.on_demand if where == ON_DEMAND else self.spot[where]


@dataclass(frozen=True, slots=True)
class Now:
    """What a policy sees before a tick. `work_s` is what remains; `debt_s` what of a restart the machine still spends.

    `is_up` is one flag a zone: spot can be had there for this tick. A machine whose zone is down is gone already.
    """

    left_s: float
    work_s: float
    debt_s: float
    where: Where
    is_up: Sequence[bool]


def must_leave(now: Now, job: Job, tick_s: float, target: Where) -> bool:
    """The safety net: may the job miss its deadline if this tick is spent at `target` and brings nothing?

    A tick of spot is counted as lost, since the machine may be taken in it; then on-demand must still be able to start
    and do all that remains.
    """
    return target != ON_DEMAND and now.left_s - tick_s < now.work_s + job.restart_s
