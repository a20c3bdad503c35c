"""Properties of every plan, on random queues, and the child process that the broker talks to."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from random import Random
from typing import Any

import jsonschema
import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from solver import program
from solver.check import check
from solver.eligibility import survey
from solver.plan import solve, solve_large
from solver.problem import state
from solver.restore import restore
from solver.schedule import Instances, Pool, Site, Task, allot, bill, finish_us, is_on_time, room_ppm
from solver.types import Plan, Quota, Snapshot, encode, json_schemas, sha256
from solver.view import View

ROOT = Path(__file__).parents[2]
SEEDS = st.integers(min_value=0, max_value=10**9)
EASY = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@EASY
@given(seed=SEEDS, stage=st.sampled_from(["program", "greedy"]))
def test_every_plan_passes_the_checker_and_costs_at_least_its_bound(towns: Any, seed: int, stage: Any) -> None:
    """For any snapshot the checker, which shares no code with the solver, finds nothing; `bound ≤ cost` is one of its rules."""
    snapshot = towns().random(seed)
    plan = solve(snapshot, stage=stage)
    assert check(snapshot, plan) == []
    assert plan.bound_nano <= plan.cost_nano


@settings(EASY, max_examples=25)
@given(seed=SEEDS, way=st.sampled_from(["program", "greedy", "large", "large greedy"]))
def test_no_plan_takes_more_units_than_a_quota_has(towns: Any, seed: int, way: Any) -> None:
    """Whichever way it is made: several types of different weight count against one group, beside a market's own quota."""
    snapshot, random = towns().random(seed), Random(seed)
    offers = tuple(
        msgspec.structs.replace(each, quota=random.choice(["", "g", "g", "h"]), quota_units=random.choice([1, 4, 48]))
        for each in snapshot.offers
    )
    quotas = tuple(Quota(market=name, remaining=random.choice([0, 3, 10, 100])) for name in "abgh")
    snapshot = msgspec.structs.replace(snapshot, offers=offers, quotas=quotas)
    is_large = way.startswith("large")
    plan = solve_large(View(snapshot), is_program=way == "large") if is_large else solve(snapshot, stage=way)
    assert check(snapshot, plan) == []
    units = {each.key: (each.quota or each.market, each.quota_units) for each in offers}
    if len({start.from_us for start in plan.starts}) <= 1:
        for quota in quotas:
            mine = [s.count * units[s.offer_key][1] for s in plan.starts if units[s.offer_key][0] == quota.market]
            assert sum(mine) <= quota.remaining


@EASY
@given(seed=SEEDS)
def test_the_same_snapshot_gives_the_same_bytes(towns: Any, seed: int) -> None:
    first, second = towns().random(seed), towns().random(seed)
    assert encode(solve(first)) == encode(solve(second))


@EASY
@given(seed=SEEDS)
def test_a_forbidden_offer_never_changes_what_is_decided(towns: Any, seed: int) -> None:
    """An offer that no policy allows, as cheap as can be, is counted and leaves starts, keeps and shares as they were."""
    town = towns()
    snapshot = town.random(seed, works=4)
    forbidden = town.offer("z/forbidden", 0.000001, facts_hash=town.place("DE", "anonymous"), capacity=100)
    wider = msgspec.structs.replace(snapshot, offers=(*snapshot.offers, forbidden), facts=town.facts)
    before, after = solve(snapshot), solve(wider)
    assert (after.starts, after.keeps, after.assignments) == (before.starts, before.keeps, before.assignments)
    for work in snapshot.works:
        assert sum(step.count for step in after.funnels[work.id]) == len(wider.offers)
        assert after.funnels[work.id][-1] == before.funnels[work.id][-1]


@EASY
@given(seed=SEEDS)
def test_the_program_serves_no_less_than_the_fallback(towns: Any, seed: int) -> None:
    """At the highest priority of the queue, to a tenth of a percent of a work."""
    snapshot = towns().random(seed, works=5)
    top = max(work.priority for work in snapshot.works)
    ids = {work.id for work in snapshot.works if work.priority == top}

    def served(plan: Plan) -> int:
        return sum(each.share_ppm for each in plan.assignments if each.work_id in ids)

    assert served(solve(snapshot)) >= served(solve(snapshot, stage="greedy")) - 1000


@EASY
@given(seed=SEEDS)
def test_what_the_program_promises_survives_rounding(towns: Any, seed: int) -> None:
    """Its durations, capacities and margins are right: made exact, its solution serves what it said, to 50 millionths."""
    view = View(towns().random(seed, works=5))
    problem = state(view, {work.id: survey(work, view) for work in view.snapshot.works})
    solution = program.solve(problem) if problem.works else None
    if solution is None:
        return
    draft = restore(problem, solution)
    for work in problem.works:
        assert draft.served(work.id) >= 1_000_000 * (1 - solution.unserved[work.id]) - 50


@EASY
@given(seed=SEEDS)
def test_a_relaxation_that_is_suggested_does_make_the_work_fit(towns: Any, seed: int) -> None:
    """Solved alone with the change, the work is served whole, at the cost that was said, by either way of planning."""
    snapshot = towns().random(seed, works=1)
    for waiting in solve(snapshot).unplaced:
        for change in waiting.relaxations:
            if change.field == "residency.country":
                policy = snapshot.policies[snapshot.works[0].policy_hash]
                wider = tuple(
                    msgspec.structs.replace(rule, values=tuple(change.needed.split(",")))
                    if rule.field == "country"
                    else rule
                    for rule in policy.rules
                )
                policies = {
                    **snapshot.policies,
                    snapshot.works[0].policy_hash: msgspec.structs.replace(policy, rules=wider),
                }
                relaxed = msgspec.structs.replace(snapshot, policies=policies)
            else:
                work = msgspec.structs.replace(snapshot.works[0], **{change.field: int(change.needed)})
                relaxed = msgspec.structs.replace(snapshot, works=(work,))
            plan = solve(relaxed, stage="greedy")
            assert plan.unplaced == ()
            assert plan.cost_nano == change.cost_nano
            assert solve(relaxed).unplaced == ()


@given(
    st.lists(st.tuples(st.integers(0, 50), st.integers(1, 4)), min_size=1, max_size=4),
    st.integers(min_value=1, max_value=500),
)
def test_work_ends_at_the_first_moment_at_which_all_of_it_fits(groups: list[tuple[int, int]], load: int) -> None:
    end = finish_us(groups, load)

    def done(at: int) -> int:
        return sum(count * max(0, at - ready) for ready, count in groups)

    assert done(end) >= load > done(end - 1)


@given(st.integers(0, 10**12), st.dictionaries(st.text(max_size=3), st.integers(1, 10**9), min_size=1, max_size=8))
def test_an_allotted_sum_is_exact_and_fair_to_one_unit(total: int, parts: dict[str, int]) -> None:
    shares = allot(total, parts)
    assert sum(shares.values()) == total
    for key, part in parts.items():
        assert abs(shares[key] * sum(parts.values()) - total * part) < sum(parts.values())


@given(SEEDS)
def test_the_room_at_a_site_is_exactly_what_still_fits(towns: Any, seed: int) -> None:
    random = Random(seed)
    town = towns()
    classes = tuple(
        Instances(random.randint(0, 80), random.randint(1, 9), 0, 1, ("r",) if random.random() < 0.5 else ())
        for _ in range(2)
    )
    tasks = [
        Task(town.work(f"w{number}"), random.choice([50, 100, 200]), random.randint(1, 100), random.randint(1, 300))
        for number in range(3)
    ]
    site = Site("x/1", "x", Pool("p", "m", "bf16"), classes, tuple(sorted(tasks, key=lambda task: task.turn)))
    counts, shares = (random.randint(0, 2), random.randint(1, 3)), {"w0": random.randint(0, 200_000)}
    if not is_on_time(site, counts, shares):
        return
    room = room_ppm(site, counts, shares, tasks[1])
    assert is_on_time(site, counts, {**shares, "w1": room})
    assert not is_on_time(site, counts, {**shares, "w1": room + 1})
    assert bill(site, counts, {**shares, "w1": room + 1}).total == sum(
        bill(site, counts, {**shares, "w1": room + 1}).allotted.values()
    )


# The child process


def child(lines: bytes, *arguments: str, hash_seed: str = "0") -> list[bytes]:
    """What `python -m solver` answers, run as the broker runs it: another process, with another hash seed."""
    ended = subprocess.run(
        [sys.executable, "-m", "solver", *arguments],
        input=lines,
        capture_output=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
        check=True,
        timeout=100,
    )
    return ended.stdout.splitlines()


@pytest.fixture(scope="module")
def snapshots(towns: Any) -> list[Snapshot]:
    return [towns().random(seed, works=5, offers=7) for seed in range(12)]


def test_another_process_with_another_hash_seed_gives_the_same_bytes(snapshots: list[Snapshot]) -> None:
    lines = b"\n".join(encode(each) for each in snapshots) + b"\n"
    expected = [encode(solve(each)) for each in snapshots]
    assert child(lines, hash_seed="1") == expected
    assert child(lines, hash_seed="4711") == expected
    assert any(json.loads(plan)["starts"] for plan in expected)


def test_a_line_that_is_no_snapshot_is_answered_and_the_next_is_planned(snapshots: list[Snapshot]) -> None:
    contradictory = msgspec.structs.replace(snapshots[0], works=snapshots[0].works * 2)
    lines = [b"not json", b'{"now_us": "noon"}', encode(contradictory), encode(snapshots[0])]
    answers = [json.loads(line) for line in child(b"\n".join(lines))]
    assert [each.get("error", {}).get("code") for each in answers] == ["bad_snapshot"] * 3 + [None]
    assert "$.now_us" in answers[1]["error"]["message"]
    assert "each once" in answers[2]["error"]["message"]
    assert answers[3]["snapshot_sha256"] == sha256(snapshots[0])


def test_the_child_can_be_told_to_plan_without_the_program(snapshots: list[Snapshot]) -> None:
    for line in child(b"\n".join(encode(each) for each in snapshots), "--stage", "greedy"):
        assert json.loads(line)["stage"] in ("greedy", "empty")


def test_snapshots_and_plans_follow_the_published_schemas(snapshots: list[Snapshot]) -> None:
    schemas = json.loads(b"\n".join(child(b"", "--schema")))
    assert schemas == json.loads(json.dumps(json_schemas()))
    for snapshot in snapshots:
        for name, value in (("snapshot", snapshot), ("plan", solve(snapshot))):
            jsonschema.validate(json.loads(encode(value)), {**schemas[name], "$defs": schemas["$defs"]})
