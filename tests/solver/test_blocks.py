"""The bound with whole starts: its blocks are solved exactly, and no plan costs less."""

from __future__ import annotations

from random import Random
from typing import Any

import msgspec
import numpy as np
import pulp
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks.solver_world import world
from solver.check import check
from solver.fluid import blocks
from solver.fluid.classes import group
from solver.fluid.figures import Figures
from solver.fluid.generate import generate
from solver.fluid.masks import Masks
from solver.fluid.prices import Pricing
from solver.plan import solve, solve_large
from solver.types import Snapshot
from solver.view import View

SEEDS = st.integers(min_value=0, max_value=10**9)
FEW = settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def pricing_of(snapshot: Snapshot) -> Pricing:
    figures = Figures(View(snapshot))
    classes = group(figures)
    return Pricing(figures, classes, Masks(figures, classes))


def best_of_block(pairs: blocks.Pairs, block: int, gain: Any, bucket: Any, edges: Any) -> float:
    """The same by PuLP: whole starts, parts of classes, a row for each deadline."""
    program = pulp.LpProblem("block", pulp.LpMaximize)
    starts = program.add_variable("y", 0, int(pairs.most[block]), cat="Integer")
    mine = [pair for pair in np.flatnonzero(pairs.block == block).tolist() if gain[pair] > 0]
    parts = {pair: program.add_variable(f"x{pair}", 0, 1) for pair in mine}
    program += pulp.lpSum(gain[pair] * part for pair, part in parts.items()) - float(pairs.fixed[block]) * starts
    for edge, hours in enumerate(edges.tolist()):
        due = [float(pairs.long[pair]) * part for pair, part in parts.items() if bucket[pair] <= edge]
        if due:
            program += pulp.lpSum(due) <= max(0.0, hours - float(pairs.start[block])) * starts
    program.solve(pulp.HiGHS(msg=False, threads=1, gapRel=0.0))
    return float(pulp.value(program.objective) or 0.0)


def test_a_block_gains_what_an_integer_program_says() -> None:
    pricing = pricing_of(world(60, 25))
    edges = pricing.classes.edge_low
    least, _ = pricing.cheapest(pricing.free(), edges, is_bound=False)
    worth = np.where(np.isfinite(least), least, 0.0)
    source = Random(7)
    prices = worth * np.array([source.uniform(0.9, 1.6) for _ in worth])
    pairs = blocks.pairs_below(pricing, edges, pricing.free(), prices)
    gain = np.maximum(0.0, prices[pairs.k] - pairs.usd)
    bucket = pricing.classes.bucket[pairs.k]
    expected = sum(best_of_block(pairs, block, gain, bucket, edges) for block in range(len(pairs.block_r)))
    seen = blocks.look(pricing, pairs, blocks.Prices(prices, pricing.free()), edges)
    assert expected > 0
    assert seen.bound == pytest.approx(float(prices.sum()) - expected, rel=1e-6)


def test_whole_starts_prove_more_than_shares_of_them() -> None:
    pricing = pricing_of(world(150, 60))
    edges = pricing.classes.edge_low
    scarcity = generate(pricing, edges).scarcity
    shares = pricing.bound(scarcity, edges)
    least, _ = pricing.cheapest(scarcity, edges, is_bound=False)
    worth = np.where(np.isfinite(least), least, 0.0)
    usd, _ = blocks.bound(
        pricing,
        edges,
        blocks.Prices(worth, scarcity),
        plan_usd=1.2 * shares,
        served=np.ones(len(worth)),
        looks=40,
    )
    assert usd > 1.02 * shares


@FEW
@given(seed=SEEDS)
def test_no_exact_plan_costs_less_than_the_bound_of_a_large_queue(towns: Any, seed: int) -> None:
    """The small way finds the optimum of a little world; the large way's bound on all plans of the same world is below it."""
    snapshot = towns().random(seed, works=9, offers=9)
    exact, large = solve(snapshot), solve_large(View(snapshot), is_program=True)
    if not exact.unplaced and not large.unplaced:
        assert large.bound_nano <= exact.cost_nano


@pytest.mark.parametrize(("seed", "works", "offers"), [(20036, 60, 2), (20117, 3, 6)])
def test_works_of_several_kinds_pay_a_start_together(town: Any, seed: int, works: int, offers: int) -> None:
    """Kinds are paced by their p95, one pool has several. Blocks were dropped for not paying a start kind by kind, so the bound
    lay above the plan's own cost, and the broker threw the plan away for a greedy one."""
    plain, draw = town.random(seed, works=works, offers=offers), Random(seed)
    paced = tuple(
        msgspec.structs.replace(each, max_p95_ms=draw.choice([None, None, 1, 500, 5000, 100_000]))
        for each in plain.works
    )
    speeds = tuple(
        msgspec.structs.replace(
            each,
            sequences=draw.choice([0.0, 1.0, 8.0, 64.5]),
            fixed=draw.choice([0, 0.5, 1.0]),
            slower=draw.choice([0.5, 1, 2.3]),
        )
        for each in plain.throughput
    )
    snapshot = msgspec.structs.replace(plain, works=paced, throughput=speeds)
    plan = solve_large(View(snapshot), is_program=True)
    assert plan.bound_nano <= plan.cost_nano
    assert check(snapshot, plan) == []
