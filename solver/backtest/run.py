"""The backtest itself: random starts in recorded pools, each policy through each, and the report that names what it used."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, get_args

import numpy as np

from solver.backtest.errors import BadTrace
from solver.backtest.traces import Trace, together
from solver.spot import baselines
from solver.spot.clairvoyant import Clairvoyant
from solver.spot.expected_cost import ExpectedCost
from solver.spot.replay import Decide, Outcome, replay
from solver.spot.world import Flags, Job, Policy, Pools

# What comes before a start and is given to a policy that learns; nothing of it is replayed.
HISTORY_S = 7 * 86_400.0
BASELINES: Mapping[str, Callable[[Job, Pools, float], Decide]] = {
    "on-demand": baselines.on_demand,
    "greedy": baselines.greedy,
    "last-moment": baselines.last_moment,
    "uniform-progress": baselines.uniform_progress,
}
POLICIES: tuple[str, ...] = get_args(Policy)


@dataclass(frozen=True, slots=True)
class Start:
    """One seed's place in a record: what is replayed, and what came before."""

    seed: int
    tick: int
    history: Flags
    is_up: Flags


@dataclass(frozen=True, slots=True)
class Result:
    """A policy over all starts: ratios of sums. `cost_over_on_demand` is beside the work at on-demand without any restart."""

    policy: str
    cost_over_on_demand: float
    cost_over_clairvoyant: float | None
    makespan_over_work: float
    missed: int
    preemptions: float


def starts(traces: Sequence[Trace], job: Job, seeds: int, world: int = 0) -> list[Start]:
    """One start a seed, with seven days before it where the record is long enough for that, else with what there is.
    `world` is the number of the record among several: else one seed would draw the same moment of all.

    Raises BadTrace when no start leaves room for the whole deadline.
    """
    is_up, is_known, tick_s = together(traces)
    ticks = int(np.ceil(job.deadline_s / tick_s - 1e-9))
    room = is_up.shape[1] - ticks
    history = min(round(HISTORY_S / tick_s), max(1, room // 2))
    known = np.concatenate(([0], np.cumsum(is_known.all(axis=0))))
    possible = [tick for tick in range(history, room + 1) if known[tick + ticks] - known[tick] == ticks]
    if not possible:
        hours = is_up.shape[1] * tick_s / 3600
        raise BadTrace(
            f"trace {traces[0].name}: {hours:.1f} h recorded leave no start for a deadline of {job.deadline_s / 3600:.1f} h "
            "with history before it; shorten the work or the deadline factor"
        )
    sources = [np.random.default_rng([seed, world] if world else seed) for seed in range(seeds)]
    chosen = [possible[int(source.integers(len(possible)))] for source in sources]
    return [
        Start(seed, tick, is_up[:, tick - history : tick], is_up[:, tick : tick + ticks])
        for seed, tick in enumerate(chosen)
    ]


def backtest(
    worlds: Sequence[tuple[Sequence[Trace], Pools]], job: Job, policies: Sequence[str], seeds: int
) -> tuple[list[Result], list[dict[str, Any]]]:
    """Every policy over every start of every world, and a row a run. Costs of different worlds are added in units of their
    own on-demand price. Raises BadTrace (see `starts`)."""
    rows: list[dict[str, Any]] = []
    for number, (traces, pools) in enumerate(worlds):
        tick_s = traces[0].tick_s
        for start in starts(traces, job, seeds, number):
            best = Clairvoyant(job, pools, start.is_up, tick_s)
            for policy in policies:
                outcome = replay(_decide(policy, job, pools, start, tick_s, best), job, pools, start.is_up, tick_s)
                rows.append(_row(policy, [trace.name for trace in traces], start, outcome, best.cost, pools))
    return [_result(policy, [row for row in rows if row["policy"] == policy], job) for policy in policies], rows


def report(
    results: Sequence[Result],
    rows: Sequence[Mapping[str, Any]],
    job: Job,
    worlds: Sequence[tuple[Sequence[Trace], Pools]],
    inputs: Mapping[str, bytes],
    seeds: int,
) -> dict[str, Any]:
    """The document of a backtest. `sha256` is over inputs, job, pools and seeds: equal hashes, equal figures."""
    basis = {
        "inputs": [
            {"name": name, "sha256": hashlib.sha256(content).hexdigest()} for name, content in sorted(inputs.items())
        ],
        "work_hours": job.work_s / 3600,
        "deadline_factor": job.deadline_s / job.work_s,
        "restart_minutes": job.restart_s / 60,
        "seeds": seeds,
        "worlds": [
            {
                "zones": [trace.zone for trace in traces],
                "accelerator": f"{traces[0].accelerator} x{traces[0].count}",
                "spot_usd_hour": list(pools.spot),
                "on_demand_usd_hour": pools.on_demand,
            }
            for traces, pools in worlds
        ],
        "policies": [each.policy for each in results],
    }
    digest = hashlib.sha256(json.dumps(basis, sort_keys=True).encode()).hexdigest()
    return {
        "object": "backtest",
        **basis,
        "sha256": digest,
        "policies": [asdict(each) for each in results],
        "runs": list(rows),
    }


def _decide(policy: str, job: Job, pools: Pools, start: Start, tick_s: float, best: Clairvoyant) -> Decide:
    if policy == "clairvoyant":
        return best
    if policy == "broker":
        return ExpectedCost(job, pools, start.history, tick_s)
    return BASELINES[policy](job, pools, tick_s)


def _row(policy: str, names: list[str], start: Start, outcome: Outcome, best: float, pools: Pools) -> dict[str, Any]:
    return {
        "policy": policy,
        "traces": names,
        "seed": start.seed,
        "tick": start.tick,
        "cost": outcome.cost / pools.on_demand,
        "clairvoyant": best / pools.on_demand,
        "makespan_s": outcome.makespan_s,
        "missed": outcome.is_missed,
        "preemptions": outcome.preemptions,
    }


def _result(policy: str, rows: Sequence[Mapping[str, Any]], job: Job) -> Result:
    cost, best = sum(row["cost"] for row in rows), sum(row["clairvoyant"] for row in rows)
    return Result(
        policy=policy,
        cost_over_on_demand=round(cost * 3600 / (job.work_s * len(rows)), 6),
        # no plan was in time: there is nothing to compare with
        cost_over_clairvoyant=round(cost / best, 6) if np.isfinite(best) else None,
        makespan_over_work=round(sum(row["makespan_s"] for row in rows) / (job.work_s * len(rows)), 6),
        missed=sum(row["missed"] for row in rows),
        preemptions=round(sum(row["preemptions"] for row in rows) / len(rows), 6),
    )
