"""What an explanation costs: words for each placed work, verified relaxations and savings, and what policies cost.

`python -m benchmarks.explanations --jobs N --offers M [--json]`. CPU-milliseconds. `produce_ms`: the choice (why here, next best,
cheaper and excluded) and the funnel of one work, from the plan's own tables. `verify_ms`: one change of one work solved again on
what the plan leaves free, looking at all offers, as a relaxation of work that waits is; `savings_ms`: all that `broker explain`
tells of one batch, a dozen of such solves among the nearest offers. Medians and the longest over `--sample` works.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from random import Random
from typing import Any, TypeVar

import msgspec

from benchmarks.calibrate import calibrate
from benchmarks.solver_world import world
from solver import explain
from solver.beside import beside
from solver.eligibility import funnel, survey
from solver.fluid import classes as grouping
from solver.fluid.figures import Figures
from solver.fluid.masks import Masks
from solver.fluid.reasons import Reasons
from solver.plan import solve
from solver.policy_cost import policy_shares
from solver.relax import alone
from solver.savings import savings
from solver.size import is_small
from solver.types import HOUR_US, Plan
from solver.view import View

Found = TypeVar("Found")


def measured(jobs: int, offers: int, seed: int, sample: int) -> dict[str, Any]:
    """Figures of one world."""
    snapshot = world(jobs, offers, seed)
    solve_s, plan = _timed(lambda: solve(snapshot))
    view = View(snapshot)
    produce = _of_small if is_small(view) else _of_large
    produce_s, _ = _timed(lambda: produce(view, plan))
    placed = sorted({each.work_id for each in plan.assignments})
    chosen = Random(seed).sample(placed, min(sample, len(placed)))
    verify, saving = [], []
    for work_id in chosen:
        work = next(each for each in snapshot.works if each.id == work_id)
        later = msgspec.structs.replace(work, deadline_us=work.deadline_us + 2 * HOUR_US)
        rest = beside(snapshot, plan, {work_id})
        verify.append(_timed(lambda rest=rest, later=later: alone(rest, later))[0])
        saving.append(_timed(lambda work_id=work_id: savings(snapshot, plan, work_id))[0])
    policies_s, _ = _timed(lambda: policy_shares(snapshot, plan, plan.starts))
    return {
        "path": "exact" if is_small(view) else "large",
        "solve_ms": round(solve_s * 1000, 1),
        "produce_ms": round(produce_s * 1000 / max(1, len(placed)), 3),
        "verify_ms": _spread(verify),
        "savings_ms": _spread(saving),
        "policies_ms": round(policies_s * 1000, 1),
        "starts": len(plan.starts),
    }


def _of_small(view: View, plan: Plan) -> None:
    surveys = {work.id: survey(work, view) for work in view.snapshot.works}
    explain.choices(view, surveys, plan.assignments)
    for verdicts in surveys.values():
        funnel(verdicts)


def _of_large(view: View, plan: Plan) -> None:
    figures = Figures(view)
    reasons = Reasons(Masks(figures, grouping.group(figures)))
    reasons.funnels()
    reasons.choices(plan.assignments)


def _timed(made: Callable[[], Found]) -> tuple[float, Found]:
    began = time.process_time()
    found = made()
    return time.process_time() - began, found


def _spread(seconds: Sequence[float]) -> dict[str, float]:
    return {"median": round(statistics.median(seconds) * 1000, 1), "most": round(max(seconds) * 1000, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=150)
    parser.add_argument("--offers", type=int, default=200)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--sample", type=int, default=20)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    found = measured(arguments.jobs, arguments.offers, arguments.seed, arguments.sample)
    found |= {"lp_cpu_s": calibrate()["lp_cpu_s"]}
    print(json.dumps(found) if arguments.json else json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
