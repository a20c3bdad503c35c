"""Simple policies to compare with. Those that wait keep the safety net, so none of them is late.

`greedy` takes spot wherever there is some, else on-demand. `last-moment` takes spot, waits where there is none, and goes to
on-demand for good when the time is up. `uniform-progress` is our reading of "Can't Be Late" (NSDI 2024, Wu et al.): without
spot, on-demand only while less is done than the straight line to the deadline asks; not the authors' code.
"""

from __future__ import annotations

from solver.spot.replay import Decide
from solver.spot.world import IDLE, ON_DEMAND, Job, Now, Pools, Where, must_leave


def on_demand(job: Job, pools: Pools, tick_s: float) -> Decide:
    """On-demand from the first moment to the last."""
    return lambda now: ON_DEMAND


def greedy(job: Job, pools: Pools, tick_s: float) -> Decide:
    """Whatever is cheapest just now."""

    def decide(now: Now) -> Where:
        target = _cheapest_spot(now, pools)
        dear = target != IDLE and pools.price(target) >= pools.on_demand
        return ON_DEMAND if target == IDLE or dear or must_leave(now, job, tick_s, target) else target

    return decide


def last_moment(job: Job, pools: Pools, tick_s: float) -> Decide:
    """Spot or nothing, until only on-demand still makes the deadline."""

    def decide(now: Now) -> Where:
        target = _cheapest_spot(now, pools)
        return ON_DEMAND if now.where == ON_DEMAND or must_leave(now, job, tick_s, target) else target

    return decide


def uniform_progress(job: Job, pools: Pools, tick_s: float) -> Decide:
    """Spot where there is some; without, on-demand while behind the line, and then until two restarts ahead of it."""

    def decide(now: Now) -> Where:
        target = _cheapest_spot(now, pools)
        if must_leave(now, job, tick_s, target):
            return ON_DEMAND
        if target != IDLE:
            return target
        done_s = job.work_s - now.work_s
        line_s = job.work_s * (job.deadline_s - now.left_s) / job.deadline_s
        ahead_s = 2 * job.restart_s if now.where == ON_DEMAND else 0.0
        return ON_DEMAND if done_s < line_s + ahead_s else IDLE

    return decide


def _cheapest_spot(now: Now, pools: Pools) -> Where:
    """The zone that holds the machine, while it does; else the cheapest that has one; else idle."""
    if now.where >= 0:
        return now.where
    up = [zone for zone, is_up in enumerate(now.is_up) if is_up]
    return min(up, key=lambda zone: (pools.spot[zone], zone), default=IDLE)
