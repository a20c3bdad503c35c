"""The checker: it passes right plans, and names the rule that each broken plan breaks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from solver.check import check
from solver.plan import solve
from solver.residency import compile_countries
from solver.types import Assignment, Budget, Plan, Quota, Rule, Snapshot, Start, Unplaced, sha256

replace = msgspec.structs.replace


@pytest.fixture
def snapshot(town: Any) -> Snapshot:
    """A queue with all that can be broken: two projects, a running rental, spot, limits, quotas, budgets, places not allowed."""
    policy = compile_countries(["DE", "FR"])
    works = [
        town.work("a", 4.0, within_h=3, max_usd=20, policy=policy, input_tokens=3_000_000),
        town.work("b", 1.0, within_h=8, policy=policy, output_tokens_p90=5_000_000),
        town.work("c", 1.0, project="q", policy=policy, max_rtt_ms=20),
        town.work("d", 1.0, model="unheard of", policy=policy),
    ]
    offers = [
        town.offer("x/cheap", 1.0, start_s=300, capacity=3, pricing="spot", rtt_ms=20),
        town.offer("x/dear", 2.0, start_s=60, capacity=20, minimum_s=60, granularity_s=60),
        town.offer("x/excluded", 0.5, excluded="implausible price"),
        town.offer("x/far", 3.0, rtt_ms=21),
        town.offer("x/token", 0.5, pricing="token"),
        town.offer("x/unknown", None),
        town.offer("x/us", 0.5, country="US", capacity=9),
        town.offer("y/other", 30.0, accelerator="abacus", capacity=9),
    ]
    running = [town.rental("rental_1", offers[0]), town.rental("rental_2", offers[0], project="gone")]
    quotas = [Quota(market="x", remaining=8), Quota(market="y", remaining=1)]
    budgets = [Budget(project="p", remaining_nano=40 * town.USD)]
    return town.snapshot(works, offers, running=running, quotas=quotas, budgets=budgets)


def test_the_plan_that_is_broken_below_is_right(snapshot: Snapshot) -> None:
    plan = solve(snapshot)
    assert check(snapshot, plan) == []
    assert {each.work_id for each in plan.assignments} == {"a", "b", "c"}
    assert plan.starts and plan.keeps and plan.drains and plan.unplaced


def change(plan: Plan, what: str, number: int, **fields: Any) -> Plan:
    """The plan with one entry of one list changed."""
    entries = list(getattr(plan, what))
    entries[number] = replace(entries[number], **fields)
    return replace(plan, **{what: tuple(entries)})


def started(plan: Plan, **fields: Any) -> Plan:
    """The plan with one more start, right in all that is not given."""
    start = Start(
        offer_key="x/dear", project="p", model="m", precision="bf16", count=1, from_us=0, until_us=0, cost_nano=0
    )
    return replace(plan, starts=(*plan.starts, replace(start, **fields)))


def moved(plan: Plan, work_id: str, offer_key: str) -> Plan:
    """The plan with a work on another offer, and an instance started for it."""
    project = "q" if work_id == "c" else "p"
    there = Assignment(work_id=work_id, offer_key=offer_key, share_ppm=1_000_000, order=0, cost_nano=0, end_us=0)
    others = tuple(each for each in plan.assignments if each.work_id != work_id)
    return started(replace(plan, assignments=(*others, there)), offer_key=offer_key, project=project)


def nth(plan: Plan, what: str) -> Any:
    return getattr(plan, what)[0]


MUTATIONS: list[tuple[str, Callable[[Plan], Plan]]] = [
    ("snapshot", lambda plan: replace(plan, snapshot_sha256="0" * 64)),
    ("version", lambda plan: replace(plan, version=2)),
    ("unknown_offer", lambda plan: change(plan, "starts", 0, offer_key="x/nowhere")),
    ("unknown_work", lambda plan: change(plan, "assignments", 0, work_id="nobody")),
    ("unknown_rental", lambda plan: replace(plan, keeps=("rental_9",))),
    ("duplicate_start", lambda plan: replace(plan, starts=(*plan.starts, plan.starts[0]))),
    ("duplicate_assignment", lambda plan: replace(plan, assignments=(*plan.assignments, plan.assignments[0]))),
    ("rental_partition", lambda plan: replace(plan, drains=())),
    ("rental_partition", lambda plan: replace(plan, drains=(*plan.drains, *plan.keeps))),
    ("idle_rental", lambda plan: replace(plan, keeps=("rental_1", "rental_2"), drains=())),
    ("idle_start", lambda plan: started(plan, offer_key="y/other")),
    ("idle_start", lambda plan: started(plan, project="q", model="another")),  # an instance of a pool without work
    ("count", lambda plan: change(plan, "starts", 0, count=0)),
    ("excluded", lambda plan: moved(plan, "c", "x/excluded")),
    ("token_priced", lambda plan: moved(plan, "c", "x/token")),
    ("price_unknown", lambda plan: moved(plan, "c", "x/unknown")),
    ("residency", lambda plan: moved(plan, "c", "x/us")),
    ("latency", lambda plan: moved(plan, "c", "x/far")),
    ("latency", lambda plan: moved(plan, "c", "y/other")),  # nobody knows how far
    ("model", lambda plan: moved(plan, "c", "y/other")),
    ("capacity", lambda plan: change(plan, "starts", 0, count=21)),
    ("instances", lambda plan: change(plan, "assignments", 0, turn=1)),  # a turn that nothing is started for
    ("idle_start", lambda plan: replace(plan, starts=(*plan.starts, replace(plan.starts[0], turn=1)))),
    ("quota", lambda plan: change(plan, "starts", 0, count=9)),
    ("share", lambda plan: change(plan, "assignments", 0, share_ppm=0)),
    ("share_sum", lambda plan: change(plan, "assignments", -1, share_ppm=999_999)),
    ("share_sum", lambda plan: change(plan, "assignments", 0, share_ppm=1_000_001)),
    ("share_sum", lambda plan: replace(plan, assignments=plan.assignments[:-1])),
    ("share_sum", lambda plan: replace(plan, unplaced=())),
    (
        "unplaced",
        lambda plan: replace(
            plan, unplaced=(*plan.unplaced, Unplaced(work_id="a", waiting_on="capacity", reasons=("none",)))
        ),
    ),
    ("unplaced", lambda plan: change(plan, "unplaced", 0, reasons=())),
    ("instances", lambda plan: replace(plan, starts=())),
    ("deadline", lambda plan: replace(plan, keeps=(), drains=("rental_1", "rental_2"))),
    ("order", lambda plan: change(plan, "assignments", 0, order=7)),
    ("end", lambda plan: change(plan, "assignments", 0, end_us=nth(plan, "assignments").end_us + 1)),
    ("start_cost", lambda plan: change(plan, "starts", 0, cost_nano=nth(plan, "starts").cost_nano - 1)),
    ("start_times", lambda plan: change(plan, "starts", 0, until_us=nth(plan, "starts").until_us + 1)),
    ("start_times", lambda plan: change(plan, "starts", 0, from_us=nth(plan, "starts").from_us - 1)),
    ("assignment_cost", lambda plan: change(plan, "assignments", 0, cost_nano=1)),
    ("plan_cost", lambda plan: replace(plan, cost_nano=plan.cost_nano - 1)),
    ("bound", lambda plan: replace(plan, bound_nano=plan.cost_nano + 1)),
    ("funnel", lambda plan: replace(plan, funnels={**plan.funnels, "a": ()})),
    ("funnel", lambda plan: replace(plan, funnels={**plan.funnels, "a": (Rule(rule="eligible", count=7),)})),
    (
        "funnel",
        lambda plan: replace(
            plan, funnels={**plan.funnels, "a": (Rule(rule="sold_out", count=8), Rule(rule="eligible", count=0))}
        ),
    ),
    ("choice", lambda plan: replace(plan, choices=plan.choices[1:])),
    ("choice", lambda plan: change(plan, "choices", 0, offer_key="x/us")),
]


@pytest.mark.parametrize(("rule", "mutate"), MUTATIONS, ids=[f"{n}-{rule}" for n, (rule, _) in enumerate(MUTATIONS)])
def test_a_broken_plan_is_refused_by_the_name_of_the_rule(
    snapshot: Snapshot, rule: str, mutate: Callable[[Plan], Plan]
) -> None:
    found = check(snapshot, mutate(solve(snapshot)))
    assert rule in {violation.rule for violation in found}


def test_the_mutations_cover_more_than_twenty_rules() -> None:
    assert len({rule for rule, _ in MUTATIONS}) >= 20


def reissued(snapshot: Snapshot, **fields: Any) -> set[str]:
    """The rules that yesterday's plan breaks in a snapshot that has changed since; only the digest is brought up to date."""
    changed = replace(snapshot, **fields)
    return {each.rule for each in check(changed, replace(solve(snapshot), snapshot_sha256=sha256(changed)))}


def test_a_plan_does_not_outlive_what_it_was_made_for(snapshot: Snapshot, town: Any) -> None:
    """One change of the world each; the plan is as it was."""
    assert reissued(snapshot) == set()
    assert reissued(snapshot, budgets=(Budget(project="p", remaining_nano=1),)) == {"project_budget"}
    assert reissued(snapshot, works=tuple(replace(work, max_nano=town.USD) for work in snapshot.works)) == {
        "work_limit"
    }
    late = tuple(replace(work, deadline_us=snapshot.now_us + 60_000_000) for work in snapshot.works)
    assert reissued(snapshot, works=late) == {"deadline"}
    expired = {
        key: replace(facts, evidence=tuple(replace(each, valid_until_us=0) for each in facts.evidence))
        for key, facts in snapshot.facts.items()
    }
    assert reissued(snapshot, facts=expired) == {"residency"}
    dearer = tuple(replace(offer, price_nano_hour=(offer.price_nano_hour or 0) + 1) for offer in snapshot.offers)
    assert "start_cost" in reissued(snapshot, offers=dearer)
    slower = tuple(replace(each, output_per_s=each.output_per_s * 0.99) for each in snapshot.throughput)
    assert "end" in reissued(snapshot, throughput=slower)


def test_the_queue_is_checked_in_the_order_that_the_plan_gives(town: Any) -> None:
    """Both fit when the near deadline runs first; the other way round one is late."""
    works = [town.work("late", 2.0, within_h=9), town.work("soon", 1.0, within_h=2)]
    snapshot = town.snapshot(works, [town.offer("x/1")])
    plan = solve(snapshot)
    swapped = replace(plan, assignments=tuple(replace(each, order=1 - each.order) for each in plan.assignments))
    assert "deadline" in {violation.rule for violation in check(snapshot, swapped)}
