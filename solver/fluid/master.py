"""The linear program of classes on time-shared capacity, over the columns that pricing thought worth it.

    minimise  Σ price·x + Σ penalty·u
    served    Σ_resources x + u = 1                       for each class; for all classes of twins together
    capacity  Σ_{before < due ≤ edge} hours·x + left(edge) - left(before) ≤ room between the two edges
                                                          for each resource and edge where the candidates could exceed it
    quota     the same over all resources of a quota
    budget    Σ price·x / budget ≤ 1                      for each project with a budget

It is built as arrays and handed to one of two back-ends (`backends`), which agree on the objective.
"""

from __future__ import annotations

from dataclasses import dataclass, field

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

    The first columns are those of `columns`, then one `u` per class, then what is left of each row of `carries`. `rows` names the
    rows after the classes:
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
    carries: tuple[tuple[str, int, int], ...]
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


def build(pricing: Pricing, columns: Columns, edges: Floats, penalty: Floats, share: Floats | None = None) -> Program:
    """The program over these columns. Rows that the candidates cannot fill are left out.

    `share`: start-up hours per busy hour of each column, where another than that of one start until the deadline is known.
    """
    classes, figures = pricing.classes, pricing.figures
    share = steering_shares(pricing, columns, edges) if share is None else share
    cost, long = _columns(pricing, columns)
    cost = cost * (1 + share)
    many, k_count = len(columns.k), len(classes)
    matrix = _Matrix(k_count, many + k_count)
    matrix.add(classes.served_by[columns.k], np.arange(many), np.ones(many))
    matrix.add(classes.served_by, many + np.arange(k_count), np.ones(k_count))
    whole = np.where(classes.is_first, 1.0, 0.0)  # of twins the first has the row; those of the others are empty
    busy = long * (1 + share)
    bucket = classes.bucket[columns.k]
    _capacity_rows(matrix, "capacity", columns.r, bucket, busy / figures.resources.count[columns.r], edges)
    if pricing.quota_names:
        _capacity_rows(matrix, "quota", pricing.quota[columns.r], bucket, busy / pricing.granted[columns.r], edges)
    _budget_rows(pricing, columns, cost, matrix)
    starts, index, value = matrix.by_column()
    return Program(
        columns=columns,
        cost=np.concatenate([cost, penalty, np.zeros(matrix.columns - many - k_count)]),
        starts=starts,
        index=index,
        value=value,
        row_lower=np.concatenate([whole, np.full(len(matrix.rows), -np.inf)]),
        row_upper=np.concatenate([whole, np.array(matrix.upper)]),
        rows=tuple(matrix.rows),
        carries=tuple(matrix.carries),
        classes=k_count,
    )


@dataclass(slots=True)
class _Matrix:
    """Coefficients as they come. `rows` are those after the classes', `carries` the names of the last columns."""

    classes: int
    columns: int
    rows: list[tuple[str, int, int]] = field(default_factory=list)
    upper: list[float] = field(default_factory=list)
    carries: list[tuple[str, int, int]] = field(default_factory=list)
    entries: list[tuple[Ints, Ints, Floats]] = field(default_factory=list)

    def add(self, row: Ints, column: Ints, value: Floats) -> None:
        self.entries.append((row, column, value))

    def by_column(self) -> tuple[Ints, Ints, Floats]:
        """(starts, row numbers, values) of compressed sparse columns."""
        row, column, value = (np.concatenate([each[part] for each in self.entries]) for part in range(3))
        order = np.lexsort((row, column))
        starts = np.searchsorted(column[order], np.arange(self.columns + 1))
        return starts, row[order].astype(np.int64), value[order].astype(np.float64)


def _capacity_rows(matrix: _Matrix, name: str, place: Ints, bucket: Ints, busy: Floats, edges: Floats) -> None:
    """A row for each place and edge that its candidates could fill; `busy` hours are of the whole place.

    What is not used before one edge is carried to the next, so that a column stands in one row and not in that of every later
    deadline: a third of the coefficients at 20,000 works, and programs that are solved in a third of the time.
    """
    mine = np.flatnonzero(place >= 0)
    if not mine.size:
        return
    size, buckets = int(place.max()) + 1, len(edges)
    code = place[mine] * buckets + bucket[mine]
    shape = (size, buckets)
    load = np.cumsum(np.bincount(code, weights=busy[mine], minlength=size * buckets).reshape(shape), axis=1)
    ends_here = np.bincount(code, minlength=size * buckets).reshape(shape) > 0
    at, edge = np.nonzero((load > edges) & ends_here)
    if not at.size:
        return
    first = matrix.classes + len(matrix.rows)
    number = np.full(shape, np.iinfo(np.int64).max, dtype=np.int64)
    number[at, edge] = first + np.arange(at.size)
    own = np.minimum.accumulate(number[:, ::-1], axis=1)[:, ::-1][place[mine], bucket[mine]]
    has_row = own < np.iinfo(np.int64).max
    matrix.add(own[has_row], mine[has_row], busy[mine[has_row]] / edges[edge[own[has_row] - first]])
    goes_on = np.flatnonzero(at[:-1] == at[1:])  # rows that another one of the same place follows
    carry = matrix.columns + np.arange(goes_on.size)
    matrix.add(first + goes_on, carry, 1.0 / edges[edge[goes_on]])
    matrix.add(first + goes_on + 1, carry, -1.0 / edges[edge[goes_on + 1]])
    matrix.columns += goes_on.size
    names = [(name, int(each), int(until)) for each, until in zip(at.tolist(), edge.tolist(), strict=True)]
    matrix.rows.extend(names)
    matrix.carries.extend(names[each] for each in goes_on.tolist())
    before = np.where(np.concatenate([[False], at[:-1] == at[1:]]), np.concatenate([[0.0], edges[edge[:-1]]]), 0.0)
    matrix.upper.extend((1.0 - before / edges[edge]).tolist())


def steering_shares(pricing: Pricing, columns: Columns, edges: Floats) -> Floats:
    """Start-up hours per busy hour of each column if a start serves until the deadline."""
    start = pricing.figures.start[pricing.classes.kind[columns.k], columns.r]
    found: Floats = start / (edges[pricing.classes.bucket[columns.k]] - start)
    return found


def _columns(pricing: Pricing, columns: Columns) -> tuple[Floats, Floats]:
    """(price in USD, cautious hours) of the whole class in each column, without start-up."""
    classes, figures = pricing.classes, pricing.figures
    kind, accelerator = classes.kind[columns.k], figures.accelerator[columns.r]
    base = classes.tokens_in[columns.k] * figures.per_input[kind, accelerator]
    per_output, slow = figures.per_output[kind, accelerator], figures.slow[kind, columns.r]
    cost = (base + classes.tokens_out[columns.k] * per_output) * slow * figures.resources.price[columns.r]
    long = (base + classes.tokens_long[columns.k] * per_output) * slow * figures.caution[kind, accelerator]
    return cost, long


def _budget_rows(
    pricing: Pricing,
    columns: Columns,
    cost: Floats,
    matrix: _Matrix,
) -> None:
    figures = pricing.figures
    project = np.array([each.project for each in figures.pools], dtype=object)
    for number, (name, nano) in enumerate(sorted(figures.view.budgets.items())):
        spends = project[pricing.classes.pool[columns.k]] == name
        mine = np.flatnonzero(spends & (figures.resources.pool[columns.r] < 0))
        if mine.size and cost[mine].sum() > nano / 1e9:
            row = np.full(mine.size, matrix.classes + len(matrix.rows), dtype=np.int64)
            # a hundredth stays free: whole instances cost a little more than their shares
            matrix.add(row, mine, cost[mine] / max(1e-9, 0.99 * nano / 1e9))
            matrix.rows.append(("budget", number, 0))
            matrix.upper.append(1.0)


def scarcity_of(pricing: Pricing, program: Program, prices: Floats, edges: Floats) -> Scarcity:
    """Row prices as tables; `prices` are the duals of the rows after the classes (≤ 0 in a minimisation).

    A row's price an hour is that of all later edges together, since what it leaves is carried on.
    """
    found = pricing.free()
    hourly = {name: max(0.0, -price) for name, price in zip(program.rows, prices.tolist(), strict=True)}
    names = list(program.rows)
    for each, following in zip(names, [*names, None][1:], strict=True):
        name, place, edge = each
        if name == "budget":
            continue
        price = hourly[each] / edges[edge]
        if following is not None and following[:2] == (name, place):
            price -= hourly[following] / edges[following[2]]
        table = found.capacity if name == "capacity" else found.quota
        table[place, edge] = max(0.0, price * edges[edge])
    return found
