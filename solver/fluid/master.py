"""The linear program of classes on time-shared capacity, over the columns that pricing thought worth it.

    minimise  Σ price·x + Σ penalty·u
    served    Σ_resources x + u = 1                       for each class
    capacity  Σ_{due ≤ edge} hours·x / room ≤ 1           for each resource and edge where the candidates could exceed it
    quota     the same over all resources of a quota
    budget    Σ price·x / budget ≤ 1                      for each project with a budget

It is built as arrays and handed to one of two back-ends (`backends`), which agree on the objective.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from solver.fluid.figures import Floats, Ints
from solver.fluid.prices import Pricing, Scarcity


@dataclass(frozen=True, slots=True)
class Columns:
    """Pairs of (class, resource), sorted, each once."""

    k: Ints
    r: Ints

    @staticmethod
    def of(k: Ints, r: Ints, resources: int) -> Columns:
        codes = np.unique(k * resources + r)
        return Columns(codes // resources, codes % resources)

    def code(self, resources: int) -> Ints:
        return self.k * resources + self.r


@dataclass(frozen=True, slots=True)
class Program:
    """A minimisation in arrays: columns by compressed sparse columns, rows `lower ≤ a·x ≤ upper`, all columns ≥ 0.

    The first columns are those of `columns`, then one `u` per class. `rows` names the rows after the classes:
    ("capacity", resource, bucket), ("quota", quota, bucket), ("budget", project number, 0).
    """

    columns: Columns
    cost: Floats
    starts: Ints
    index: Ints
    value: Floats
    row_lower: Floats
    row_upper: Floats
    rows: tuple[tuple[str, int, int], ...]
    classes: int


@dataclass(frozen=True, slots=True)
class Answer:
    """`x` and `u` values, row prices as `Scarcity`, the price factor of each project's money, and the objective."""

    x: Floats
    u: Floats
    scarcity: Scarcity
    objective: float
    basis: object | None = None


def penalties(pricing: Pricing, least: Floats) -> Floats:
    """USD for not serving each class: more than any price it may come to, and more the higher the priority.

    No higher than it must be: a penalty of 1e5 once made a gap of one percent of it worth more than the plan.
    """
    levels = {level: rank for rank, level in enumerate(sorted(set(pricing.classes.priority.tolist())))}
    rank = np.array([levels[level] for level in pricing.classes.priority.tolist()], dtype=np.float64)
    floor = np.where(np.isfinite(least), least, 0.0)
    usual = float(floor.mean()) if len(floor) else 0.0
    return (20.0 * floor + usual + 1e-9) * 4.0**rank


def build(pricing: Pricing, columns: Columns, edges: Floats, penalty: Floats) -> Program:
    """The program over these columns. Rows that the candidates cannot fill are left out."""
    classes, figures = pricing.classes, pricing.figures
    cost, long = _columns(pricing, columns, edges)
    rows: list[tuple[str, int, int]] = []
    row_of, column_of, values = [columns.k], [np.arange(len(columns.k))], [np.ones(len(columns.k))]
    bucket, kind = classes.bucket[columns.k], classes.kind[columns.k]
    start = figures.start[kind, columns.r]
    places: list[tuple[str, Ints, Floats]] = [("capacity", columns.r, figures.resources.count[columns.r])]
    if pricing.quota_names:
        places.append(("quota", pricing.quota[columns.r], pricing.granted[columns.r]))
    for name, place, count in places:
        for edge in range(pricing.buckets):
            due = np.flatnonzero((bucket <= edge) & (place >= 0))
            if not due.size or not (bucket[due] == edge).any():
                continue
            part = long[due] / (count[due] * (edges[edge] - start[due]))
            size = int(place.max()) + 1
            could = np.bincount(place[due], weights=part, minlength=size)
            ends_here = np.bincount(place[due[bucket[due] == edge]], minlength=size) > 0
            scarce = np.flatnonzero((could > 1.0) & ends_here)
            number = np.full(size, -1, dtype=np.int64)
            number[scarce] = len(classes) + len(rows) + np.arange(len(scarce))
            rows.extend((name, int(each), edge) for each in scarce)
            chosen = number[place[due]] >= 0
            row_of.append(number[place[due[chosen]]])
            column_of.append(due[chosen])
            values.append(part[chosen])
    _budget_rows(pricing, columns, cost, rows, row_of, column_of, values)
    row, column, value = np.concatenate(row_of), np.concatenate(column_of), np.concatenate(values)
    many, k_count = len(columns.k), len(classes)
    row = np.concatenate([row, np.arange(k_count)])
    column = np.concatenate([column, many + np.arange(k_count)])
    value = np.concatenate([value, np.ones(k_count)])
    order = np.lexsort((row, column))
    starts = np.searchsorted(column[order], np.arange(many + k_count + 1))
    return Program(
        columns=columns,
        cost=np.concatenate([cost, penalty]),
        starts=starts,
        index=row[order],
        value=value[order],
        row_lower=np.concatenate([np.ones(k_count), np.full(len(rows), -np.inf)]),
        row_upper=np.ones(k_count + len(rows)),
        rows=tuple(rows),
        classes=k_count,
    )


def classes_rows(classes: object) -> int:
    return len(classes)  # type: ignore[arg-type]


def _columns(pricing: Pricing, columns: Columns, edges: Floats) -> tuple[Floats, Floats]:
    """(price in USD, cautious hours) of the whole class in each column, start-up as it steers included in the price."""
    classes, figures = pricing.classes, pricing.figures
    cost, long = np.empty(len(columns.k)), np.empty(len(columns.k))
    bounds = np.flatnonzero(np.diff(columns.k, prepend=-1))
    for begin, end in zip(bounds.tolist(), [*bounds[1:].tolist(), len(columns.k)], strict=True):
        k = int(columns.k[begin])
        kind, r = int(classes.kind[k]), columns.r[begin:end]
        due = float(edges[classes.bucket[k]])
        start = figures.start[kind, r]
        accelerator = figures.accelerator[r]
        base = classes.tokens_in[k] * figures.per_input[kind, accelerator]
        slow = figures.slow[kind, r]
        expected = (base + classes.tokens_out[k] * figures.per_output[kind, accelerator]) * slow
        cautious = slow * figures.caution[kind, accelerator]
        long[begin:end] = (base + classes.tokens_long[k] * figures.per_output[kind, accelerator]) * cautious
        cost[begin:end] = expected * figures.resources.price[r] * (1 + start / (due - start))
    return cost, long


def _budget_rows(
    pricing: Pricing,
    columns: Columns,
    cost: Floats,
    rows: list[tuple[str, int, int]],
    row_of: list[Ints],
    column_of: list[Ints],
    values: list[Floats],
) -> None:
    figures = pricing.figures
    project = np.array([each.project for each in figures.pools], dtype=object)
    for number, (name, nano) in enumerate(sorted(figures.view.budgets.items())):
        spends = project[pricing.classes.pool[columns.k]] == name
        mine = np.flatnonzero(spends & (figures.resources.pool[columns.r] < 0))
        if mine.size and cost[mine].sum() > nano / 1e9:
            row_of.append(np.full(mine.size, len(pricing.classes) + len(rows), dtype=np.int64))
            column_of.append(mine)
            # a hundredth stays free: whole instances cost a little more than their shares
            values.append(cost[mine] / max(1e-9, 0.99 * nano / 1e9))
            rows.append(("budget", number, 0))


def scarcity_of(pricing: Pricing, program: Program, prices: Floats) -> Scarcity:
    """Row prices as tables; `prices` are the duals of the rows after the classes (≤ 0 in a minimisation)."""
    found = pricing.free()
    for (name, place, edge), price in zip(program.rows, prices.tolist(), strict=True):
        if name == "capacity":
            found.capacity[place, edge] = max(0.0, -price)
        elif name == "quota":
            found.quota[place, edge] = max(0.0, -price)
    return found
