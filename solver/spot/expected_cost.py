"""The broker's own policy: the least expected cost that the safety net allows, by dynamic programming.

State: time left, slack (time left beyond the work left), the machine held and how far its restart is, and each zone's state in
its chain; zones are taken as independent, which errs on the optimistic side within a region. Slack and not work, because it
never grows: the table is as narrow as the deadline is tight. The value is exact up to that model and to the grid, between
whose points it is interpolated. The net is a rule and no cost: what it forbids is never looked at.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from solver.spot.chain import ages, coarse, fit
from solver.spot.world import IDLE, ON_DEMAND, Flags, Job, Now, Pools, Where, must_leave

# Ages at which a spell's nature changes, by how many zones are looked at together; the table has 2^zones·(steps)^zones columns.
EDGES_S: tuple[tuple[float, ...], ...] = (
    (600.0, 1200.0, 2400.0, 4800.0, 4 * 3600.0, 12 * 3600.0), (600.0, 3600.0), (), (), ()
)  # fmt: skip
# What an hour of waiting costs besides, as a part of on-demand: where waiting is worth as much as beginning, begin.
IMPATIENCE = 0.01
# How long a fit is believed.
REFIT_S = 3 * 3600.0
# Numbers in one table at most: 4 bytes each.
LARGEST_TABLE = 40_000_000


@dataclass(frozen=True, slots=True)
class Grid:
    """One step is `factor` ticks; slack is counted in steps, too. A restart is `phases` steps, the last of which has `spare`
    of it left for work."""

    factor: int
    step_s: float
    steps: int
    slacks: int
    zones: int
    phases: int
    spare: float

    @property
    def places(self) -> int:
        return 2 + self.zones * (self.phases + 1)

    def place(self, where: Where, phase: int) -> int:
        """Index of idle, of on-demand (its restart counts as work: it is never lost), of a zone with restart steps to go."""
        if where < 0:
            return 0 if where == IDLE else 1
        place: int = 2 + where * (self.phases + 1) + phase
        return place

    def phase(self, debt_s: float) -> tuple[int, float]:
        """Steps of restart to go for so many seconds of it, and how far towards one step less."""
        phase = 0 if debt_s <= 0 else min(self.phases, math.ceil(debt_s / self.step_s + self.spare - 1e-9))
        if phase == 0:
            return 0, 0.0
        longest, shortest = self._debt_s(phase), self._debt_s(phase - 1)
        return phase, min(max((longest - debt_s) / (longest - shortest), 0.0), 1.0)

    def _debt_s(self, phase: int) -> float:
        return 0.0 if phase == 0 else (phase - self.spare) * self.step_s


class ExpectedCost:
    """Fitted to `history` (zones, ticks), which ends where the job begins, and again to what it sees as it goes.

    Call it once for every tick, in turn: that is how it sees the zones.
    """

    def __init__(self, job: Job, pools: Pools, history: Flags, tick_s: float) -> None:
        self._job, self._pools, self._tick_s = job, pools, tick_s
        self._window = history.shape[1]
        self._record = [zone.tolist() for zone in history]
        self._seen = [(bool(zone[-1]), float(ages(zone, tick_s)[-1])) for zone in history]
        self._due_s = math.inf

    def __call__(self, now: Now) -> Where:
        """Where to be for this tick."""
        costs = self.costs(now)
        order = {target: number for number, target in enumerate(costs)}
        return min(costs, key=lambda target: (costs[target], target != now.where, order[target]))

    def costs(self, now: Now) -> dict[Where, float]:
        """Expected cost to the end of being there for this tick, of all that the safety net allows."""
        self._observe(now.is_up)
        if now.left_s <= self._due_s:
            self._fit(now)
        states = tuple(
            chain.state(is_up=up, age_s=age) for chain, (up, age) in zip(self._chains, self._seen, strict=True)
        )
        return {
            target: self._value(now, target, states)
            for target in (IDLE, ON_DEMAND, *range(len(self._chains)))
            if self._is_open(now, target)
        }

    def _fit(self, now: Now) -> None:
        """Chains and table anew, from the last days up to now."""
        zones = len(self._record)
        edges = EDGES_S[min(zones, len(EDGES_S)) - 1]
        self._grid = _grid(now, self._job, self._tick_s, zones, (2 * (len(edges) + 1)) ** zones)
        recent = np.array([zone[-self._window :] for zone in self._record], dtype=bool)
        self._chains = [fit(coarse(zone, self._grid.factor), self._grid.step_s, edges) for zone in recent]
        self._after = self._solve()
        self._due_s = now.left_s - REFIT_S

    def _observe(self, is_up: Sequence[bool]) -> None:
        for zone, up in zip(self._record, is_up, strict=True):
            zone.append(up)
        self._seen = [
            (up, age + self._tick_s if up == before else self._tick_s)
            for up, (before, age) in zip(is_up, self._seen, strict=True)
        ]

    def _is_open(self, now: Now, target: Where) -> bool:
        if target >= 0 and not now.is_up[target]:
            return False
        return not must_leave(now, self._job, self._tick_s, target)

    def _value(self, now: Now, target: Where, states: tuple[int, ...]) -> float:
        """Expected cost to the end when this tick is spent at `target`."""
        grid, pools = self._grid, self._pools
        debt_s = now.debt_s if target == now.where else 0.0 if target == IDLE else self._job.restart_s
        if target == ON_DEMAND and now.left_s - self._tick_s < now.work_s + 2 * self._job.restart_s:
            return pools.on_demand * (now.work_s + debt_s) / 3600
        used_s = 0.0 if target == IDLE else min(self._tick_s, debt_s + now.work_s)
        spent_s = min(debt_s, used_s)
        work_s, debt_s = now.work_s - (used_s - spent_s), debt_s - spent_s
        left_s = now.left_s - self._tick_s
        steps, slack = left_s / grid.step_s, (left_s - work_s) / grid.step_s
        phase, over = grid.phase(debt_s) if target >= 0 else (0, 0.0)
        if target == ON_DEMAND:  # its restart is counted as work
            slack -= debt_s / grid.step_s
        later = _between(self._at(target, phase, states), steps, slack)
        if over:
            sooner = _between(self._at(target, phase - 1, states), steps, slack)
            later = later * (1 - over) + sooner * over
        waiting = IMPATIENCE * pools.on_demand * self._tick_s / 3600 if target == IDLE else 0.0
        return pools.price(target) * used_s / 3600 + waiting + later

    def _at(self, where: Where, phase: int, states: tuple[int, ...]) -> npt.NDArray[np.float32]:
        """The part of the table by (steps left, slack)."""
        by_place: npt.NDArray[np.float32] = np.moveaxis(self._after, 1, 0)[self._grid.place(where, phase)]
        for state in states:
            by_place = by_place[:, state]
        return by_place

    def _solve(self) -> npt.NDArray[np.float32]:
        """Expected cost to go by (steps left, place of the last step, states of the zones *before* the coming step, slack)."""
        grid, job, pools = self._grid, self._job, self._pools
        shape = tuple(chain.states for chain in self._chains)
        restart, step_h = job.restart_s / grid.step_s, grid.step_s / 3600
        net = math.ceil(restart + self._tick_s / grid.step_s)
        table = np.zeros((grid.steps + 1, grid.places, *shape, grid.slacks), dtype=np.float32)
        up = [self._up(zone) for zone in range(len(self._chains))]
        fresh = [grid.place(zone, grid.phases) for zone in range(len(self._chains))]
        for left in range(1, grid.steps + 1):
            work = np.maximum(left - np.arange(grid.slacks), 0).astype(np.float32)
            stay = self._stays(table[left - 1], up, (np.minimum(work, 1.0) * step_h).astype(np.float32))
            begin = np.minimum(_shift(stay[1], -restart), stay[fresh].min(axis=0))
            best = np.minimum(stay, np.minimum(begin, stay[0]))
            # the net: who is out of time goes on as on-demand
            best[..., :net] = pools.on_demand * (work[:net] + restart) * step_h
            best[1, ..., :net] = pools.on_demand * work[:net] * step_h
            best[..., work == 0] = 0.0
            table[left] = self._expect(best)
        return table

    def _stays(
        self, after: npt.NDArray[np.float32], up: Sequence[Flags], used_h: npt.NDArray[np.float32]
    ) -> npt.NDArray[np.float32]:
        """Cost of spending the step where the machine is already; infinite where a zone is down."""
        grid, pools = self._grid, self._pools
        stay = np.empty_like(after)
        stay[0] = _shift(after[0], -1) + IMPATIENCE * pools.on_demand * grid.step_s / 3600
        stay[1] = after[1] + pools.on_demand * used_h
        for zone, flags in enumerate(up):
            first = grid.place(zone, 0)
            stay[first] = after[first] + pools.spot[zone] * used_h
            for phase in range(1, grid.phases + 1):
                # only the last step of a restart has time left for work
                lost = 1.0 - grid.spare if phase == 1 else 1.0
                stay[first + phase] = _shift(after[first + phase - 1], -lost) + pools.spot[zone] * grid.step_s / 3600
            stay[first : first + grid.phases + 1, ~flags] = np.inf
        return stay

    def _up(self, zone: int) -> Flags:
        """The joint states in which the zone is up."""
        chain = self._chains[zone]
        flags = np.array([chain.is_up(state) for state in range(chain.states)])
        lone = flags.reshape([-1 if axis == zone else 1 for axis in range(len(self._chains))])
        return np.broadcast_to(lone, tuple(each.states for each in self._chains))

    def _expect(self, best: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """The mean over the next states of the zones, one zone after the other."""
        for axis, chain in enumerate(self._chains, start=1):
            best = np.moveaxis(np.tensordot(chain.step.astype(np.float32), best, axes=(1, axis)), 0, axis)
        return best


def _grid(now: Now, job: Job, tick_s: float, zones: int, states: int) -> Grid:
    """As fine as the ticks where the table stays small enough; five minutes are always fine enough."""
    factor = max(1, round(300 / tick_s) if tick_s < 150 else 1)
    while True:
        step_s = factor * tick_s
        phases = math.ceil(job.restart_s / step_s - 1e-9)
        grid = Grid(
            factor=factor,
            step_s=step_s,
            steps=max(1, math.ceil(now.left_s / step_s)),
            slacks=max(2, math.ceil((now.left_s - now.work_s) / step_s) + 1),
            zones=zones,
            phases=phases,
            spare=phases - job.restart_s / step_s,
        )
        if grid.places * states * grid.steps * grid.slacks <= LARGEST_TABLE or grid.steps < 24:
            return grid
        factor += 1


def _shift(values: npt.NDArray[np.float32], by: float) -> npt.NDArray[np.float32]:
    """Values at `by` steps more slack (less, where negative), interpolated; beyond the grid its last value."""
    last = values.shape[-1] - 1
    low = math.floor(by)
    over = np.float32(by - low)
    first = np.clip(np.arange(last + 1) + low, 0, last)
    if not over:
        return values[..., first]
    second = np.clip(np.arange(last + 1) + low + 1, 0, last)
    return values[..., first] * (1 - over) + values[..., second] * over


def _between(table: npt.NDArray[np.float32], steps: float, slack: float) -> float:
    """The value between the four points of (steps left, slack) around these."""
    low_t, over_t = _below(steps, table.shape[0])
    low_s, over_s = _below(slack, table.shape[1])
    early = float(table[low_t, low_s]) * (1 - over_s) + float(table[low_t, low_s + 1]) * over_s
    late = float(table[low_t + 1, low_s]) * (1 - over_s) + float(table[low_t + 1, low_s + 1]) * over_s
    return early * (1 - over_t) + late * over_t


def _below(at: float, size: int) -> tuple[int, float]:
    """The grid point below, of which there is a next one, and how far `at` lies beyond it."""
    inside = min(max(at, 0.0), float(size - 1))
    low = min(math.floor(inside), size - 2)
    return low, inside - low
