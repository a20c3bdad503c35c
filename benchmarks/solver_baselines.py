"""Other ways to plan the same world, each written as its kind usually is. They know all runtimes exactly."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pulp

from benchmarks.solver_events import Run
from solver.fluid.classes import group
from solver.fluid.figures import OPEN, Figures
from solver.fluid.masks import Masks
from solver.types import HOUR_US, Snapshot
from solver.view import View

# Hours for which the naive program sells each instance, as a first version does.
DAY_H = 24.0


class _Alone:
    """Each work by itself, from the tables of eligible offers: instances needed, cost and hours on every offer."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot
        self.figures = Figures(View(snapshot))
        self.masks = Masks(self.figures, group(self.figures))
        self.of = {work: k for k, members in enumerate(self.masks.classes.members) for work in members}

    def table(self, number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(instances, cost in USD, instance hours), cost infinite where the work may not run or could not end in time."""
        k = self.of[number]
        work, classes = self.snapshot.works[number], self.masks.classes
        tokens = classes.tokens_in[k] + classes.tokens_out[k]
        part = (work.input_tokens + work.output_tokens_p50) / tokens
        hours = self.masks.hours(k) * part
        start = self.figures.start[classes.kind[k]]
        left = (work.deadline_us - self.snapshot.now_us) / HOUR_US - start
        ok = (self.masks.codes(k) == OPEN) & (left > 0) & (hours > 0)
        many = np.where(ok, np.ceil(hours / np.maximum(left, 1e-9)), 1e9)
        ok &= many <= self.figures.resources.count
        price = self.figures.resources.price
        return many, np.where(ok, price * (many * start + hours), np.inf), many * start + hours

    def run(self, number: int, offer: int, many: int, begins: list[int]) -> Run:
        work = self.snapshot.works[number]
        return Run(
            self.figures.offers[offer].key, work.model, work.precision, tuple(begins[:many]), ((work.id, 1_000_000),)
        )


def _first_come(snapshot: Snapshot, by_hour: bool) -> list[Run]:
    """Works in order of arrival, each on an own cluster at its best offer that has instances left."""
    alone = _Alone(snapshot)
    left = alone.figures.resources.count.copy()
    runs = []
    for number in range(len(snapshot.works)):
        many, cost, _ = alone.table(number)
        fits = np.where(many <= left, cost, np.inf)
        value = np.where(np.isfinite(fits), alone.figures.resources.price * many, np.inf) if by_hour else fits
        best = int(np.argmin(value))
        if math.isfinite(value[best]):
            left[best] -= many[best]
            runs.append(alone.run(number, best, int(many[best]), [0] * int(many[best])))
    return runs


def per_job(snapshot: Snapshot) -> list[Run]:
    """Each work where it costs least alone, in order of arrival, with perfect runtimes."""
    return _first_come(snapshot, by_hour=False)


def hourly(snapshot: Snapshot) -> list[Run]:
    """Each work at the least price an hour: every runtime is taken to be the same."""
    return _first_come(snapshot, by_hour=True)


def naive(snapshot: Snapshot) -> list[Run]:
    """PuLP and CBC with a binary for each eligible pair, instances sold by the day, one percent of gap."""
    alone = _Alone(snapshot)
    program = pulp.LpProblem("naive", pulp.LpMinimize)
    tables = [alone.table(number) for number in range(len(snapshot.works))]
    pairs: dict[tuple[int, int], pulp.LpVariable] = {}
    use: dict[int, list[tuple[float, pulp.LpVariable]]] = {}
    cost = []
    for number, (_, prices, hours) in enumerate(tables):
        offers = np.flatnonzero(np.isfinite(prices)).tolist()
        for offer in offers:
            pairs[number, offer] = variable = program.add_variable(f"x_{number}_{offer}", cat="Binary")
            cost.append(float(prices[offer]) * variable)
            use.setdefault(offer, []).append((float(hours[offer]), variable))
        if offers:
            # not all need have a place: twenty times the dearest is what leaving one out costs
            out = program.add_variable(f"u_{number}", cat="Binary")
            cost.append(20 * float(prices[offers].max()) * out)
            program += pulp.lpSum(pairs[number, offer] for offer in offers) + out == 1
    program += pulp.lpSum(cost)
    for offer, those in use.items():
        program += (
            pulp.lpSum(hours * variable for hours, variable in those) <= DAY_H * alone.figures.resources.count[offer]
        )
    program.solve(pulp.PULP_CBC_CMD(msg=False, gapRel=0.01, threads=1, timeLimit=600))
    chosen: dict[int, list[int]] = {}
    for (number, offer), variable in pairs.items():
        if (variable.varValue or 0) > 0.5:
            chosen.setdefault(offer, []).append(number)
    return [run for offer, numbers in sorted(chosen.items()) for run in _scheduled(alone, offer, numbers, tables)]


def _scheduled(
    alone: _Alone, offer: int, numbers: list[int], tables: list[tuple[np.ndarray, np.ndarray, np.ndarray]]
) -> list[Run]:
    """Works of one offer, earliest deadline first, each when enough instances are free."""
    free = [0] * int(alone.figures.resources.count[offer])
    runs = []
    for number in sorted(numbers, key=lambda each: alone.snapshot.works[each].deadline_us):
        many_of, _, hours = tables[number]
        many = int(many_of[offer])
        free.sort()
        begin = free[many - 1]
        runs.append(alone.run(number, offer, many, [begin] * many))
        free[:many] = [begin + math.ceil(float(hours[offer]) / many * HOUR_US)] * many
    return runs


BASELINES: dict[str, Callable[[Snapshot], list[Run]]] = {"per_job": per_job, "hourly": hourly, "naive": naive}
