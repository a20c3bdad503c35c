"""Levels of effort: more of it is never dearer, each is exact, and each says the same for the same snapshot."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

from benchmarks.solver_events import judge, runs_of
from benchmarks.solver_world import world
from solver.check import check
from solver.fluid.classes import group
from solver.fluid.effort import EFFORTS
from solver.fluid.figures import Figures
from solver.fluid.fill import fill
from solver.fluid.masks import Masks
from solver.fluid.prices import Pricing
from solver.fluid.renew import Renewal
from solver.fluid.restore import Restoration
from solver.fluid.yard import Yard
from solver.plan import solve
from solver.types import Plan, Snapshot, encode
from solver.view import View


@pytest.fixture(scope="module")
def queue() -> Snapshot:
    return world(120, 60)


@pytest.fixture(scope="module")
def plans(queue: Snapshot) -> dict[str, Plan]:
    return {name: solve(queue, effort=effort) for name, effort in EFFORTS.items()}


@pytest.mark.parametrize("effort", EFFORTS)
def test_a_plan_of_any_effort_is_on_time_and_breaks_no_rule(
    queue: Snapshot, plans: dict[str, Plan], effort: str
) -> None:
    assert check(queue, plans[effort]) == []
    judged = judge(queue, runs_of(queue, plans[effort]))
    assert (judged.late_works, judged.unserved, judged.overbooked) == (0, 0, 0)
    assert plans[effort].bound_nano <= plans[effort].cost_nano


def test_effort_is_worth_it(plans: dict[str, Plan]) -> None:
    fast, normal, certify = (plans[each].cost_nano for each in ("fast", "normal", "certify"))
    assert plans["fast"].stage == "greedy"
    assert certify <= normal < fast
    assert plans["certify"].bound_nano / certify > 0.97


def test_what_is_certified_is_the_same_under_any_hash_seed(queue: Snapshot, plans: dict[str, Plan]) -> None:
    said = subprocess.run(
        [sys.executable, "-m", "solver", "--effort", "certify"],
        input=encode(queue) + b"\n",
        capture_output=True,
        check=True,
        env={**os.environ, "PYTHONHASHSEED": "4711"},
    ).stdout
    assert said.strip() == encode(plans["certify"])


def placed(snapshot: Snapshot) -> Restoration:
    """A first placement in a yard."""
    figures = Figures(View(snapshot))
    classes = group(figures)
    pricing = Pricing(figures, classes, Masks(figures, classes))
    found = Restoration(pricing, Yard(pricing), pricing.free(), classes.edge_low)
    pieces = fill(pricing)
    found.take(pieces)
    whole = np.bincount([k for k, _, _ in pieces], weights=[part for _, _, part in pieces], minlength=len(classes))
    found.left.extend((k, 1 - part) for k, part in enumerate(whole.tolist()) if part < 1 - 1e-6)
    found.finish()
    return found


def parts_of(yard: Yard) -> dict[int, float]:
    found: dict[int, float] = {}
    for berth in yard.berths.values():
        for parts in berth.loads.values():
            for k, part in parts.items():
                found[k] = found.get(k, 0.0) + part
    return found


def test_renewal_saves_what_it_says_and_loses_no_work(queue: Snapshot) -> None:
    restoration = placed(queue)
    yard = restoration.yard
    before, cost = parts_of(yard), yard.cost
    saved = Renewal(restoration).run(400)
    assert saved > 0
    assert yard.cost == pytest.approx(cost - saved)
    assert parts_of(yard) == pytest.approx(before, abs=1e-5)
    assert all(berth.packing.is_whole for berth in yard.berths.values())


def test_what_is_packed_on_from_is_as_if_packed_anew(queue: Snapshot) -> None:
    """Blocks, places and costs that are kept from before are those that come out without anything kept."""
    restoration = placed(queue)
    Renewal(restoration).run(100)
    for offer, berth in restoration.yard.berths.items():
        if berth.loads:
            anew = Yard(restoration.pricing).weigh(offer, {pool: dict(parts) for pool, parts in berth.loads.items()})
            assert anew.costs == pytest.approx(berth.costs)
            assert anew.packing.placed == berth.packing.placed
