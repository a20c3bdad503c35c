"""Whether a machine that could begin on demand now should wait for spot that is sold out: the live plan's use of the policy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from solver.spot.expected_cost import ExpectedCost
from solver.spot.world import IDLE, ON_DEMAND, Job, Now, Pools


def worth_waiting(
    *,
    work_s: float,
    spare_s: float,
    restart_s: float,
    spot: Sequence[float],
    on_demand: float,
    was_up: Sequence[Sequence[bool]],
    tick_s: float,
) -> float | None:
    """The part of the cost that waiting is expected to save; None where beginning now is best.

    `work_s` of one machine at the speed of on-demand; `spare_s` is how much later on-demand may begin. Prices are for the work of
    an hour on demand. `was_up` is the record of each pool, which ends now; a pool that was never up is not waited for.
    """
    history = np.array(was_up, dtype=bool)
    if work_s <= 0 or not history.any() or history.shape[1] < 2:
        return None
    job = Job(work_s, spare_s + work_s + restart_s, restart_s)
    policy = ExpectedCost(job, Pools(tuple(spot), on_demand), history, tick_s)
    costs = policy.costs(Now(job.deadline_s, work_s, 0.0, IDLE, [False] * len(spot)))
    if IDLE not in costs or costs[IDLE] >= costs[ON_DEMAND]:
        return None
    # beside a machine that begins now and goes on to the end: the live plan does not leave it for every spot that comes
    return 1 - costs[IDLE] / (on_demand * (work_s + restart_s) / 3600)
