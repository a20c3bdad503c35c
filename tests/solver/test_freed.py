"""What follows on a machine that is in use: on its own pool's by the plan itself, on another's by waiting; never at risk."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from solver.check import check
from solver.plan import solve
from solver.residency import compile_countries, digest
from solver.types import HOUR_US, Plan, Record, Snapshot


def recorded(snapshot: Snapshot) -> Snapshot:
    """As a broker asks: it has looked for records, and found none."""
    return msgspec.structs.replace(snapshot, records=(Record(offer_key="x/cheap", spans=()),), later_starts=False)


def two_models(town: Any, *, within_h: float = 24, busy_h: float = 2, dear: float = 5.0, **more: Any) -> Snapshot:
    """One cheap machine, at work for model m for so long; a work of model n that would run elsewhere, dearer, at once."""
    cheap = town.offer("x/cheap", 1.0, capacity=0, start_s=600)
    offers = [cheap, town.offer("y/dear", dear, start_s=600, capacity=3), town.offer("z/spare", 9.0, capacity=3)]
    works = [town.work("a", busy_h, within_h=30), town.work("b", 2, within_h=within_h, model="n")]
    running = [town.rental("rental_1", cheap)]
    speeds = {("m", "gpu"): 1000.0, ("n", "gpu"): 1000.0}
    return recorded(town.snapshot(works, offers, running=running, speeds=speeds, **more))


def begins(plan: Plan) -> list[tuple[str, str | None]]:
    return [(each.kind, each.awaits) for each in plan.later]


@pytest.mark.parametrize(
    ("many", "within_h", "starts"),
    [
        (1, 24, 0),
        (1, 3, 1),
        (60, 24, 0),  # planned by classes
        (60, 3, 1),  # the running machine was let go, and two rented
    ],
)
def test_a_queued_batch_is_planned_behind_the_running_one_where_time_is_left_and_beside_it_where_not(
    town: Any, many: int, within_h: float, starts: int
) -> None:
    """Of one pool no swap is needed: a second machine would cost its start-up and a dearer hour."""
    here = town.offer("x/cheap", 1.0, capacity=0, start_s=600)
    others = [town.offer(f"y/{n:02}", 2.0, start_s=600, capacity=9) for n in range(many)]
    works = [town.work("a", 2, within_h=3), *(town.work(f"b{n}", 2 / many, within_h=within_h) for n in range(many))]
    snapshot = town.snapshot(works, [here, *others], running=[town.rental("rental_1", here)])
    snapshot = msgspec.structs.replace(snapshot, later_starts=False)
    plan = solve(snapshot)
    assert check(snapshot, plan) == []
    assert not plan.unplaced
    assert plan.keeps == ("rental_1",)
    assert sum(start.count for start in plan.starts) == starts
    if not starts:
        ends = {each.work_id: each.end_us for each in plan.assignments}
        assert ends["b0"] > ends["a"] == snapshot.now_us + 2 * HOUR_US


def test_another_models_batch_waits_for_the_cheap_machine_to_be_free_instead_of_renting_a_dear_one(town: Any) -> None:
    snapshot = two_models(town)
    plan = solve(snapshot)
    assert check(snapshot, plan) == []
    [later] = plan.later
    assert (later.kind, later.awaits, later.offer_key) == ("free", "x/cheap", "y/dear")
    assert later.free_us == snapshot.now_us + 2 * HOUR_US
    # two hours and the start at $1 instead of $5
    assert later.saving_ppm == pytest.approx(800_000, abs=1_000)
    [start] = plan.starts
    assert start.from_us == later.begin_us > later.free_us
    assert "in use until about" in later.sentence


@pytest.mark.parametrize(
    ("why", "how"),
    [
        ("its deadline is too near to wait", {"within_h": 6.0}),
        ("the machine is in use for too long", {"busy_h": 23.0}),
        ("what is rented at once costs no more", {"dear": 1.0}),
    ],
)
def test_nothing_waits_for_a_machine_that_is_no_gain(town: Any, why: str, how: dict[str, Any]) -> None:
    snapshot = two_models(town, **how)
    plan = solve(snapshot)
    assert check(snapshot, plan) == []
    assert begins(plan) == [], why
    assert all(start.from_us == snapshot.now_us for start in plan.starts)


def test_a_machine_that_a_policy_denies_is_not_waited_for(town: Any) -> None:
    snapshot = two_models(town)
    away = town.place("US")
    policy = compile_countries(["DE"])
    offers = tuple(
        msgspec.structs.replace(each, facts_hash=away) if each.key == "x/cheap" else each for each in snapshot.offers
    )
    works = tuple(
        msgspec.structs.replace(each, policy_hash=digest(policy)) if each.id == "b" else each for each in snapshot.works
    )
    policies = {**snapshot.policies, digest(policy): policy}
    denied = msgspec.structs.replace(snapshot, offers=offers, works=works, policies=policies, facts=town.facts)
    plan = solve(denied)
    assert check(denied, plan) == []
    assert begins(plan) == []


def test_several_queued_models_take_one_machine_in_turn_and_only_one_waits_for_it_at_a_time(town: Any) -> None:
    """Nothing runs yet: the plan begins one of them on the cheap machine, the next follows it, the third begins elsewhere."""
    offers = [town.offer("x/cheap", 1.0, start_s=600), town.offer("y/dear", 5.0, start_s=600, capacity=3)]
    offers.append(town.offer("z/spare", 9.0, capacity=3))
    works = [town.work(f"w{model}", 2, within_h=24, model=model) for model in "mno"]
    speeds = {(model, "gpu"): 1000.0 for model in "mno"}
    snapshot = recorded(town.snapshot(works, offers, speeds=speeds))
    plan = solve(snapshot)
    assert check(snapshot, plan) == []
    assert begins(plan) == [("free", "x/cheap")]
    now = [start.offer_key for start in plan.starts if start.from_us == snapshot.now_us]
    assert sorted(now) == ["x/cheap", "y/dear"]


def test_while_the_machine_is_given_back_and_not_offered_yet_the_wait_goes_on_but_not_for_ever(town: Any) -> None:
    snapshot = two_models(town)
    [later] = solve(snapshot).later
    assert later.free_us is not None
    works = tuple(each for each in snapshot.works if each.id == "b")
    given_back = msgspec.structs.replace(snapshot, works=works, running=(), waits=(later,))
    just = msgspec.structs.replace(given_back, now_us=later.free_us + 300_000_000)
    assert solve(just).later == (later,)
    long = msgspec.structs.replace(given_back, now_us=later.free_us + 3_000_000_000)
    assert begins(solve(long)) == []
    free = tuple(msgspec.structs.replace(each, capacity=1) if each.key == "x/cheap" else each for each in just.offers)
    then = solve(msgspec.structs.replace(just, offers=free))
    assert [(start.offer_key, start.from_us) for start in then.starts] == [("x/cheap", just.now_us)]
