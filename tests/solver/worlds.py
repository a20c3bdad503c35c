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
from solver.types import Plan, Snapshot, Variant
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
    if seed % 25 in (1, 2):
        return (_brute_force if seed % 25 == 1 else _brute_force_of_variants)(town(), seed)
    if seed % 10 == 6:
        is_large = seed % 100 == 46
        return _of_variants(town(), town().random(seed, *((40, 80) if is_large else ())), seed)
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


def _of_variants(town: Any, snapshot: Snapshot, seed: int) -> list[str]:
    """To be allowed another precision or model never makes a queue dearer than it was, and the fallback keeps the rules, too."""
    free = town.with_variants(seed, snapshot)
    fixed = msgspec.structs.replace(
        free, works=tuple(msgspec.structs.replace(each, alternatives=()) for each in free.works)
    )
    plan, before = solve(free), solve(fixed)
    found = _broken(free, plan) + _broken(free, solve(free, stage="greedy"))
    if served(plan) == served(before) and before.cost_nano < plan.bound_nano * (1 - 1e-6):
        found.append(f"without alternatives {before.cost_nano} is below the bound {plan.bound_nano} of a free choice")
    if served(plan) == served(before) and plan.cost_nano * (1 - 0.031) > before.cost_nano:
        found.append(f"with alternatives {plan.cost_nano} is more than three percent above {before.cost_nano}")
    top = max((each.priority for each in free.works), default=0)
    ids = {each.id for each in free.works if each.priority == top}
    mine, theirs = (sum(e.share_ppm for e in each.assignments if e.work_id in ids) for each in (plan, before))
    if mine < theirs - 1000:
        found.append(f"with alternatives {mine} ppm of the first works are served, without {theirs}")
    return found


def _brute_force_of_variants(town: Any, seed: int) -> list[str]:
    """Whole works, each by one of two models on one of three offers: every way is tried."""
    random = Random(seed)
    kinds = ("gpu", "tpu", "npu")
    speeds = {(model, kind): random.uniform(300, 3000) for model in "mn" for kind in kinds}
    offers = [
        town.offer(
            f"x/{kind}", random.uniform(1, 9), start_s=random.choice([0, 600, 1800]), capacity=3, accelerator=kind
        )
        for kind in kinds
    ]
    works = [
        town.work(
            f"w{number}",
            random.uniform(0.2, 2.0),
            within_h=100,
            project=f"p{number}",
            alternatives=(Variant(model="n", precision="bf16"),) if random.random() < 0.8 else (),
        )
        for number in range(3)
    ]
    snapshot = town.snapshot(works, offers, speeds=speeds)
    plan = solve(snapshot)
    ways = [
        min(
            offer.price_nano_hour
            * (offer.timings.total_s + work.output_tokens_p50 / speeds[model, offer.accelerator])
            / 3600
            for offer in offers
            for model in ("mn" if work.alternatives else "m")
        )
        for work in works
    ]
    found = _broken(snapshot, plan)
    if abs(plan.cost_nano - sum(ways)) > 1e-5 * sum(ways) + 1e7:
        found.append(f"{plan.cost_nano} is not the least, {sum(ways)}")
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
