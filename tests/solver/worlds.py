"""Thousands of random worlds: `python tests/solver/worlds.py --worlds 10000`. The last line is JSON.

Each is planned, checked by the checker, and held to what must hold of any plan: it costs at least its bound, an offer more never
makes it dearer beyond the gap, a rule more never cheaper below the bound, small ones cost what trying every assignment costs.
Every 25th is a large queue, planned by classes, every fourth of them of batches that are alike on many small offers, where all
must find a place; every 10th is planned by the fallback as well.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
import sys
from pathlib import Path
from random import Random
from typing import Any

import msgspec

from solver.check import check
from solver.fluid.effort import Effort
from solver.plan import solve, solve_large
from solver.residency.types import PolicyRule, digest
from solver.types import Plan, Snapshot
from solver.view import View

sys.path.insert(0, str(Path(__file__).parents[2]))


def towns() -> Any:
    """The builder of the solver's tests."""
    spec = importlib.util.spec_from_file_location("solver_town", Path(__file__).with_name("conftest.py"))
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.Town


def served(plan: Plan) -> int:
    return sum(each.share_ppm for each in plan.assignments)


def faults(town: Any, seed: int) -> list[str]:
    """What is wrong with the plans of one world."""
    if seed % 100 == 75:
        snapshot = town().alike(seed)
        plan = solve(snapshot, stage="greedy" if seed % 200 == 75 else "program")
        waiting = [f"{each.work_id} waits though hours are free" for each in plan.unplaced]
        return _broken(snapshot, plan) + waiting
    if seed % 25 == 0:
        snapshot = town().random(seed, works=40, offers=80)
        effort: Effort = "certify" if seed % 100 == 25 else "normal"
        plan = solve_large(View(snapshot), is_program=seed % 50 != 0, effort=effort)
        return _broken(snapshot, plan)
    if seed % 25 == 1:
        return _brute_force(town(), seed)
    snapshot = town().random(seed)
    plan = solve(snapshot)
    found = _broken(snapshot, plan)
    if seed % 10 == 2:
        found += _broken(snapshot, solve(snapshot, stage="greedy"))
    if seed % 10 in (3, 4) and not plan.unplaced and plan.stage == "program":
        found += _monotone(snapshot, plan, seed)
    return found


def _broken(snapshot: Snapshot, plan: Plan) -> list[str]:
    found = [f"{each.rule}: {each.message}" for each in check(snapshot, plan)]
    if plan.bound_nano > plan.cost_nano:
        found.append(f"bound {plan.bound_nano} above cost {plan.cost_nano}")
    return found


def _monotone(snapshot: Snapshot, plan: Plan, seed: int) -> list[str]:
    """Without one offer, or with one rule more, the least cost can only rise: it stays above what was proven before."""
    random = Random(seed)
    found = []
    fewer = list(snapshot.offers)
    used = {rental.offer_key for rental in snapshot.running}
    gone = random.choice([each for each in fewer if each.key not in used] or [None])  # type: ignore[list-item]
    if gone is not None:
        less = msgspec.structs.replace(snapshot, offers=tuple(each for each in fewer if each is not gone))
        found += _not_cheaper(less, plan, f"without {gone.key}")
    work = random.choice(snapshot.works) if snapshot.works else None
    if work is not None:
        policy = snapshot.policies[work.policy_hash]
        rule = PolicyRule(id="more", effect="allow", field="location_tier", values=("hyperscaler_region",))
        stricter = msgspec.structs.replace(policy, rules=(*policy.rules, rule))
        works = tuple(
            msgspec.structs.replace(each, policy_hash=digest(stricter)) if each is work else each
            for each in snapshot.works
        )
        policies = {**snapshot.policies, digest(stricter): stricter}
        found += _not_cheaper(
            msgspec.structs.replace(snapshot, works=works, policies=policies), plan, "with a rule more"
        )
    return found


def _not_cheaper(harder: Snapshot, plan: Plan, what: str) -> list[str]:
    other = solve(harder)
    found = _broken(harder, other)
    if served(other) == served(plan) and other.cost_nano < plan.bound_nano * (1 - 1e-6):
        found.append(f"{what}: {other.cost_nano} is below the bound {plan.bound_nano} of the easier world")
    if served(other) == served(plan) and other.stage == "program" and plan.cost_nano * (1 - 0.031) > other.cost_nano:
        # a percent is the gap, two are what spreading over regions may cost
        found.append(f"{what}: {other.cost_nano} is more than three percent below {plan.cost_nano}")
    return found


def _brute_force(town: Any, seed: int) -> list[str]:
    """Whole works of one hour each on offers by the second: every assignment is tried."""
    random = Random(seed)
    offers = [
        town.offer(f"x/{number}", random.uniform(1, 9), start_s=random.choice([0, 600, 1800]), capacity=4)
        for number in range(3)
    ]
    works = [
        town.work(f"w{number}", random.uniform(0.2, 2.0), within_h=100, project=f"p{number}") for number in range(3)
    ]
    snapshot = town.snapshot(works, offers)
    plan = solve(snapshot)
    best = min(
        sum(
            offer.price_nano_hour * (offer.timings.total_s / 3600 + work.output_tokens_p50 / 3_600_000)
            for work, offer in zip(works, chosen, strict=True)
        )
        for chosen in itertools.product(offers, repeat=3)
    )
    found = _broken(snapshot, plan)
    if abs(plan.cost_nano - best) > 1e-5 * best + 1e7:  # whole seconds are billed
        found.append(f"{plan.cost_nano} is not the least, {best}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--worlds", type=int, default=300)
    parser.add_argument("--first", type=int, default=0)
    arguments = parser.parse_args()
    town, wrong = towns(), 0
    for seed in range(arguments.first, arguments.first + arguments.worlds):
        for fault in faults(town, seed):
            wrong += 1
            print(f"world {seed}: {fault}", file=sys.stderr)
    print(json.dumps({"worlds": arguments.worlds, "faults": wrong}))
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
