"""The cheapest way through a record that is known beforehand: what no policy can beat.

Dynamic programming over (tick, work left, machine held). Work and restarts are whole numbers of a grain of at most 15 s; a
restart is work that a switch adds, which is exact for a plan that never begins what will be taken before it is ready.
"""

from __future__ import annotations

import math

import numpy as np

from solver.spot.world import IDLE, ON_DEMAND, Flags, Floats, Job, Now, Pools, Where

GRAIN_S = 15.0


class Clairvoyant:
    """`cost` is the optimum (infinite when nothing is in time); called with what is now, it says where to be next."""

    def __init__(self, job: Job, pools: Pools, is_up: Flags, tick_s: float) -> None:
        self._tick_s = tick_s
        self._deadline_s = job.deadline_s
        self._per_tick = max(1, math.ceil(tick_s / GRAIN_S))
        self._grain_s = tick_s / self._per_tick
        # Upwards: an optimum of a little more work is still one that the job can follow.
        self._work = math.ceil(round(job.work_s / self._grain_s, 6))
        self._restart = math.ceil(round(job.restart_s / self._grain_s, 6))
        ticks = min(is_up.shape[1], math.ceil(job.deadline_s / tick_s - 1e-9))
        # the deadline may lie within the last tick
        self._last = min(self._per_tick, math.floor((job.deadline_s - (ticks - 1) * tick_s) / self._grain_s + 1e-9))
        self._places: tuple[Where, ...] = (IDLE, ON_DEMAND, *range(len(pools.spot)))
        self._choice = np.zeros((ticks, len(self._places), self._work + self._restart + 1), dtype=np.int8)
        last = self._solve(pools, is_up, ticks)
        self.cost = float(last[0, self._work])

    def __call__(self, now: Now) -> Where:
        tick = round((self._deadline_s - now.left_s) / self._tick_s)
        if tick >= len(self._choice):
            return ON_DEMAND
        left = min(math.ceil(round((now.work_s + now.debt_s) / self._grain_s, 6)), self._choice.shape[2] - 1)
        return self._places[int(self._choice[tick, self._places.index(now.where), left])]

    def _solve(self, pools: Pools, is_up: Flags, ticks: int) -> Floats:
        """Cost to go by (place held, grains left) before the first tick; fills the choices."""
        size = self._work + self._restart + 1
        after = np.full((len(self._places), size), np.inf)
        after[:, 0] = 0.0
        grains = np.arange(size)
        used_h = np.minimum(grains, self._per_tick) * self._grain_s / 3600
        rest = np.maximum(grains - self._per_tick, 0)
        for tick in range(ticks - 1, -1, -1):
            stay = np.full((len(self._places), size), np.inf)
            stay[0] = after[0]
            for index, place in enumerate(self._places[1:], start=1):
                if place == ON_DEMAND or is_up[place, tick]:
                    stay[index] = pools.price(place) * used_h + after[index][rest]
            if tick == ticks - 1:
                stay[:, self._last + 1 :] = np.inf
            begin = np.full_like(stay, np.inf)
            begin[0] = stay[0]
            begin[1:, : size - self._restart] = stay[1:, self._restart :]
            best_new = begin.argmin(axis=0).astype(np.int8)
            new = begin.min(axis=0)
            after = np.minimum(stay, new)
            own = np.arange(len(self._places), dtype=np.int8)[:, None]
            self._choice[tick] = np.where(stay <= new, own, best_new)
            after[:, 0] = 0.0
        return after
