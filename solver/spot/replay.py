"""Play one policy through recorded availability, tick by tick. The one judge of all policies."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from solver.spot.world import IDLE, ON_DEMAND, Flags, Job, Now, Pools, Where

Decide = Callable[[Now], Where]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one job: cost in the pools' currency, hours used, whether it was late, machines lost, hours bought."""

    cost: float
    makespan_s: float
    is_missed: bool
    preemptions: int
    spot_s: float
    on_demand_s: float


def replay(decide: Decide, job: Job, pools: Pools, is_up: Flags, tick_s: float) -> Outcome:
    """`is_up` is (zones, ticks), from the job's first moment on; zones of which nothing is recorded any more are down.

    A machine is paid for as long as it is held, restarts included, and given back in the moment the work is done. The job
    goes on after its deadline until the record ends, and is then late in any case.
    """
    work_s, debt_s, where = job.work_s, 0.0, IDLE
    at_s = cost = spot_s = on_demand_s = 0.0
    preemptions = 0
    for tick in range(is_up.shape[1]):
        up = is_up[:, tick].tolist()
        if where >= 0 and not up[where]:
            preemptions, where, debt_s = preemptions + 1, IDLE, 0.0
        target = decide(Now(job.deadline_s - at_s, work_s, debt_s, where, up))
        if target >= 0 and not up[target]:
            raise ValueError(f"the policy took zone {target} at {at_s} s, where there was nothing")
        if target != where:
            debt_s = 0.0 if target == IDLE else job.restart_s
        where = target
        used_s = 0.0 if where == IDLE else min(tick_s, debt_s + work_s)
        cost += pools.price(where) * used_s / 3600
        spot_s += used_s if where >= 0 else 0.0
        on_demand_s += used_s if where == ON_DEMAND else 0.0
        spent_s = min(debt_s, used_s)
        debt_s -= spent_s
        work_s -= used_s - spent_s
        if work_s <= 1e-6:
            at_s += used_s
            return Outcome(cost, at_s, at_s > job.deadline_s + 1e-6, preemptions, spot_s, on_demand_s)
        at_s += tick_s
    return Outcome(cost, at_s, True, preemptions, spot_s, on_demand_s)
