"""How many requests to keep in the engine. Pure: load in, limit out.

An engine that batches continuously is saturated when a few requests wait behind those that run: fewer and its batch
has holes, many more and they only age. So the queue is steered to between a tenth of what runs and all of it, and the
limit gives way when the engine preempts (it ran out of cache memory and computes things twice) or refuses.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

GROWTH = 0.25
# While the cache is less than half full, twice as many fit: a big engine is busy after a few steps, not after twenty.
FAST_GROWTH = 1.0
HALF_FULL = 0.5
PREEMPTION_CUT = 0.8
CACHE_FULL = 0.98
UP_TO_DATE = 0.75


@dataclass(frozen=True, slots=True)
class Load:
    """What was seen since the last step. None: the engine does not tell.

    `preempted` and `refused` are counts since the last step; `in_flight` is ours, the rest is the engine's.
    """

    in_flight: int
    running: float | None = None
    waiting: float | None = None
    kv_usage: float | None = None
    preempted: float = 0
    refused: int = 0


def steer(limit: int, load: Load, *, start: int, maximum: int) -> int:
    """The next limit, between 1 and `maximum`. Without metrics it only recovers, by one a step, up to `start`."""
    if load.refused:
        return max(1, min(limit, load.in_flight or limit) // 2)
    if load.preempted > 0:
        return max(1, math.floor(limit * PREEMPTION_CUT))
    if load.waiting is None or load.running is None:
        return min(limit + 1, start) if limit < start else limit
    if load.waiting > max(1.0, load.running):
        # one running batch's worth may wait; never more than a halving at once
        return max(1, limit // 2, math.ceil(min(limit, 2 * load.running)))
    if load.waiting >= 0.1 * load.running or not _is_at_its_limit(limit, load):
        return limit
    growth = FAST_GROWTH if load.kv_usage is not None and load.kv_usage < HALF_FULL else GROWTH
    return min(maximum, limit + max(1, math.ceil(limit * growth)))


def _is_at_its_limit(limit: int, load: Load) -> bool:
    """Whether it is the limit that leaves holes in the engine's batch, and the cache has room for more.

    Not when the engine has yet to see much of what is in flight: its figures are older than the requests.
    """
    is_up_to_date = (load.running or 0) + (load.waiting or 0) >= UP_TO_DATE * load.in_flight
    return is_up_to_date and load.in_flight >= 0.9 * limit and (load.kv_usage is None or load.kv_usage < CACHE_FULL)
