"""Column generation: from the first placement and each class's cheapest places, add what the prices ask for, stop by gap."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from solver.errors import Unsolved
from solver.fluid import backends
from solver.fluid.figures import Floats
from solver.fluid.fill import fill
from solver.fluid.master import Answer, Columns, Program, build, penalties
from solver.fluid.prices import Pricing, Scarcity

# Columns of each class at the start, and the most that a round adds to it.
FIRST, MORE = 3, 2
# Rounds at most, and the gap between program and bound at which it stops. Counts, not seconds: same snapshot, same plan.
ROUNDS, GAP = 6, 4e-3


@dataclass(frozen=True, slots=True)
class Fluid:
    """The solution of the program: parts of classes at resources, prices of capacity, and the bound of the steering prices."""

    columns: Columns
    x: Floats
    u: Floats
    scarcity: Scarcity
    objective: float
    steering_bound: float
    rounds: int
    program: Program
    answer: Answer


def generate(
    pricing: Pricing,
    edges: Floats,
    *,
    first: list[tuple[int, int, float]] | None = None,
    before: Fluid | None = None,
    rounds: int = ROUNDS,
    gap: float = GAP,
    backend: str | None = None,
) -> Fluid:
    """Solve the program of these edges. `before` is a solution of the same classes under other prices or edges, to go on from.

    Raises Unsolved when the back-end does not find the optimum, or no class has a place.
    """
    resources = len(pricing.figures.resources)
    many = FIRST
    least, best = pricing.cheapest(pricing.free(), edges, is_bound=False, many=many)
    parts = [(k, int(r)) for k, those in enumerate(best) for r in those.tolist()]
    parts.extend((k, r) for k, r, _ in (fill(pricing) if first is None else first))
    if before is not None:
        parts.extend(zip(before.columns.k.tolist(), before.columns.r.tolist(), strict=True))
    pairs = np.array(sorted(set(parts)), dtype=np.int64).reshape(-1, 2)
    columns = Columns.of(pairs[:, 0], pairs[:, 1], resources)
    columns = _in_time(pricing, columns, edges)
    classes = pricing.classes
    penalty = penalties(pricing, classes.either(least)[classes.served_by])
    if not columns.k.size:
        raise Unsolved("no class has a place in time")
    program = build(pricing, columns, edges, penalty)
    answer = backends.solve(pricing, program, edges, before.answer if before is not None else None, backend)
    steering_bound = -np.inf
    for round_number in range(1, rounds + 1):
        least, best = pricing.cheapest(answer.scarcity, edges, is_bound=False, many=MORE)
        least = classes.either(least)
        priced = np.where(np.isfinite(least), np.minimum(least, penalty), penalty)[classes.is_first]
        steering_bound = max(steering_bound, float(priced.sum()) - answer.scarcity.rent)
        if round_number == rounds or answer.objective - steering_bound <= gap * max(1e-9, abs(answer.objective)):
            break
        codes = set(columns.code(resources).tolist())
        new = [(k, r) for k, those in enumerate(best) for r in those.tolist() if k * resources + r not in codes]
        if not new:
            break
        added = np.array(new, dtype=np.int64)
        columns = Columns.of(
            np.concatenate([columns.k, added[:, 0]]), np.concatenate([columns.r, added[:, 1]]), resources
        )
        program = build(pricing, columns, edges, penalty)
        answer = backends.solve(pricing, program, edges, answer, backend)
    return Fluid(
        columns=columns,
        x=answer.x,
        u=answer.u,
        scarcity=answer.scarcity,
        objective=answer.objective,
        steering_bound=steering_bound,
        rounds=round_number,
        program=program,
        answer=answer,
    )


def _in_time(pricing: Pricing, columns: Columns, edges: Floats) -> Columns:
    """Without the columns whose start-up leaves no time before these edges."""
    classes = pricing.classes
    due = edges[classes.bucket[columns.k]]
    start = pricing.figures.start[classes.kind[columns.k], columns.r]
    keep = start < 0.9 * due
    return Columns(columns.k[keep], columns.r[keep])
