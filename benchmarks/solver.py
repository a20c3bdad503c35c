"""A plan for N works and M offers: what it costs, how far it is from any other, and how much CPU it took.

`python -m benchmarks.solver --jobs N --offers M [--effort E] [--baselines] [--moved] [--variants] [--no-words] [--json]`. One
discrete-event evaluator judges every plan (`solver_events`) and knows nothing of how it was made. Baselines run on the same
world, in a process of their own each, so that memory is theirs: `per_job` (each work where it is cheapest alone, first come,
perfect runtimes), `hourly` (the least price an hour, runtimes taken to be equal, as SkyPilot's default does), `naive` (PuLP and
CBC, a binary for each pair).
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import resource
import time
from random import Random
from typing import Any

import msgspec

from benchmarks.calibrate import calibrate
from benchmarks.solver_baselines import BASELINES
from benchmarks.solver_events import Judged, judge, runs_of
from benchmarks.solver_world import world
from solver.check import check
from solver.fluid.effort import Effort
from solver.held import held_of
from solver.plan import solve
from solver.types import Plan, Snapshot, Variant

# A naive program with more binaries than this is not built: it takes hours, and then the memory.
NAIVE_PAIRS = 150_000


def measured(jobs: int, offers: int, seed: int, effort: Effort, has_words: bool) -> dict[str, Any]:
    """Figures of this planner, with repair and checker, and with the words of each work's choice or as the broker plans."""
    snapshot = msgspec.structs.replace(world(jobs, offers, seed), words=has_words)
    began = time.process_time()
    first = solve(snapshot, stage="greedy")
    first_s = time.process_time() - began
    first_judged = judge(snapshot, runs_of(snapshot, first))
    del first
    began = time.process_time()
    plan = solve(snapshot, effort=effort)
    solve_s = time.process_time() - began
    violations = check(snapshot, plan)
    cpu_s = time.process_time() - began
    judged = judge(snapshot, runs_of(snapshot, plan))
    cost = plan.cost_nano / 1e9
    return {
        "cpu_s": round(cpu_s, 2),
        "solve_cpu_s": round(solve_s, 2),
        "first_plan_cpu_s": round(first_s, 2),
        "first_plan_cost": round(first_judged.cost, 2),
        "effort": effort,
        "words": has_words,
        "rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "cost": round(cost, 2),
        "bound": round(plan.bound_nano / 1e9, 2),
        "gap": _gap(cost, plan.class_bound_nano / 1e9),
        "gap_job_exact": _gap(cost, plan.bound_nano / 1e9),
        "violations": len(violations),
        "unplaced": len(plan.unplaced),
        "stage": plan.stage,
        **_said(judged),
    }


def moved(jobs: int, offers: int, seed: int) -> dict[str, Any]:
    """The same queue after every price moved by 2 %: planned from the plan before, and anew."""
    snapshot = world(jobs, offers, seed)
    plan = solve(snapshot)
    source = Random(seed)
    prices = tuple(
        msgspec.structs.replace(
            each, price_nano_hour=round((each.price_nano_hour or 0) * math.exp(source.gauss(0, 0.02)))
        )
        for each in snapshot.offers
    )
    later = msgspec.structs.replace(snapshot, offers=prices, words=False)  # as the broker plans
    began = time.process_time()
    kept = solve(msgspec.structs.replace(later, held=held_of(plan)))
    cpu_s = time.process_time() - began
    anew = solve(later)
    return {
        "cpu_s": round(cpu_s, 2),
        "churn": _churn(snapshot, plan, kept),
        "churn_anew": _churn(snapshot, plan, anew),
        "extra_cost": round(kept.cost_nano / anew.cost_nano - 1, 4),
    }


def with_variants(jobs: int, offers: int, seed: int) -> dict[str, Any]:
    """The same queue where every second work may be served by a checkpoint of another precision as well, which is 0.7 to 1.8
    times as fast, by accelerator, and does not run on a fifth of them; beside the plan in which each keeps its own."""
    fixed, source = world(jobs, offers, seed), Random(seed)
    other = tuple(
        msgspec.structs.replace(
            each,
            precision="q8",
            input_per_s=each.input_per_s * source.uniform(0.7, 1.8),
            output_per_s=each.output_per_s * source.uniform(0.7, 1.8),
        )
        for each in fixed.throughput
        if source.random() < 0.8
    )
    works = tuple(
        msgspec.structs.replace(work, alternatives=(Variant(model=work.model, precision="q8"),) if number % 2 else ())
        for number, work in enumerate(fixed.works)
    )
    free = msgspec.structs.replace(fixed, works=works, throughput=fixed.throughput + other)
    began = time.process_time()
    own = solve(fixed)
    own_s = time.process_time() - began
    plan = solve(free)
    cpu_s = time.process_time() - began - own_s
    return {
        "cpu_s": round(cpu_s, 2),
        "own_cpu_s": round(own_s, 2),
        "of_own_cost": round(plan.cost_nano / own.cost_nano, 4),
        "gap_job_exact": _gap(plan.cost_nano, plan.bound_nano),
        "own_gap_job_exact": _gap(own.cost_nano, own.bound_nano),
        "other": sum(each.precision == "q8" for each in plan.variants),
        "violations": len(check(free, plan)),
        "unplaced": len(plan.unplaced),
    }


def _churn(snapshot: Snapshot, before: Plan, after: Plan) -> float:
    """The part of all tokens that another offer gets."""
    tokens = {work.id: work.input_tokens + work.output_tokens_p50 for work in snapshot.works}
    had = {(a.work_id, a.offer_key): a.share_ppm for a in before.assignments}
    stays = sum(min(a.share_ppm, had.get((a.work_id, a.offer_key), 0)) * tokens[a.work_id] for a in after.assignments)
    return round(1 - stays / sum(a.share_ppm * tokens[a.work_id] for a in after.assignments), 4)


def baseline(name: str, jobs: int, offers: int, seed: int) -> dict[str, Any]:
    snapshot = world(jobs, offers, seed)
    began = time.process_time()
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    runs = BASELINES[name](snapshot)
    cpu_s = time.process_time() - began + resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - children
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss + resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return {"cpu_s": round(cpu_s, 2), "rss_mb": round(peak / 1024), **_said(judge(snapshot, runs))}


def _said(judged: Judged) -> dict[str, Any]:
    return {
        "judged_cost": round(judged.cost, 2),
        "late_hours": round(judged.late_hours, 3),
        "late_works": judged.late_works,
        "unserved": judged.unserved,
        "overbooked": judged.overbooked,
    }


def _gap(cost: float, bound: float) -> float:
    return round(1 - bound / cost, 4) if cost else 0.0


def _apart(function: Any, *arguments: Any) -> dict[str, Any]:
    """Run in a fresh process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        found: dict[str, Any] = pool.apply(function, arguments)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.solver", description=__doc__)
    parser.add_argument("--jobs", type=int, required=True)
    parser.add_argument("--offers", type=int, required=True)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--baselines", action="store_true")
    parser.add_argument("--moved", action="store_true", help="plan once more after all prices moved")
    parser.add_argument("--variants", action="store_true", help="every second work may be served in another precision")
    parser.add_argument("--no-words", action="store_true", help="as the broker plans: words are made when asked for")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--effort", choices=["fast", "normal", "certify"], default="normal")
    arguments = parser.parse_args()
    size = (arguments.jobs, arguments.offers, arguments.seed)
    unit = calibrate()["lp_cpu_s"]
    found = _apart(measured, *size, arguments.effort, not arguments.no_words)
    found = {
        "jobs": size[0],
        "offers": size[1],
        "calibrated": round(found["cpu_s"] / unit, 1),
        "lp_cpu_s": unit,
        **found,
    }
    if arguments.moved:
        found["moved"] = _apart(moved, *size)
    if arguments.variants:
        found["variants"] = _apart(with_variants, *size)
    if arguments.baselines:
        found["baselines"] = {
            name: _apart(baseline, name, *size)
            for name in BASELINES
            if name != "naive" or size[0] * size[1] * 0.22 < NAIVE_PAIRS
        }
    print(json.dumps(found) if arguments.json else json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
