"""When not all can be served: priority first, and no project is left out because another has more waiting."""

from __future__ import annotations

from collections import Counter
from typing import Any

import msgspec
import pytest

from solver.check import check
from solver.plan import solve, solve_large
from solver.types import Plan, Snapshot
from solver.view import View


def planned(snapshot: Snapshot, way: str) -> Plan:
    """By the program, the simple plan, or as a large queue: with and without a program."""
    if way.startswith("large"):
        return solve_large(View(snapshot), is_program=way == "large")
    return solve(snapshot, stage="greedy" if way == "greedy" else "program")


@pytest.mark.parametrize("way", ["program", "greedy", "large", "large, first placement"])
def test_a_project_with_one_batch_is_not_starved_by_one_with_ten(town: Any, way: str) -> None:
    """Its batch is due last; by deadlines alone the ten would take all five machines."""
    many = [town.work(f"many_{number}", 9.5, project="many", within_h=10) for number in range(10)]
    one = town.work("one", 9.5, project="one", within_h=10.01)
    snapshot = town.snapshot([*many, one], [town.offer("x/1", 1.0, capacity=5)])
    plan = planned(snapshot, way)
    assert check(snapshot, plan) == []
    served = {each.work_id for each in plan.assignments if each.share_ppm == 1_000_000}
    assert "one" in served
    assert "one" not in {each.work_id for each in plan.unplaced}


@pytest.mark.parametrize("way", ["program", "greedy", "large", "large, first placement"])
def test_priority_goes_before_fairness(town: Any, way: str) -> None:
    urgent = [town.work(f"urgent_{number}", 9.5, project="many", within_h=10, priority=5) for number in range(5)]
    one = town.work("one", 9.5, project="one", within_h=10)
    snapshot = town.snapshot([*urgent, one], [town.offer("x/1", 1.0, capacity=5)])
    plan = planned(snapshot, way)
    assert [each.work_id for each in plan.unplaced] == ["one"]


@pytest.mark.parametrize(
    ("many", "few", "hours", "due_h"),
    [
        (40, 3, 4, 10),  # the three are due last, all of one bucket
        (300, 60, 3, 9),  # more than there is room for of both: as many of the one as of the other
    ],
)
def test_a_large_queue_takes_turns_as_the_simple_plan_does(
    town: Any, many: int, few: int, hours: float, due_h: float
) -> None:
    """Large queues went by deadline alone, and none of the few was served."""
    works = [town.work(f"a{n:03}", hours, project="a", within_h=due_h + n / 1000) for n in range(many)]
    works += [town.work(f"b{n:03}", hours, project="b", within_h=due_h + n / 1000) for n in range(few)]
    snapshot = town.snapshot(works, [town.offer("x/1", 1.0, capacity=20 if few == 60 else 8)])
    snapshot = msgspec.structs.replace(snapshot, later_starts=False)

    def served(way: str) -> Counter[str]:
        plan = planned(snapshot, way)
        assert check(snapshot, plan) == []
        count = Counter[str]()
        for each in plan.assignments:
            count[each.work_id[0]] += each.share_ppm
        return count

    small, large = served("greedy"), served("large")
    assert large["b"] == pytest.approx(small["b"], abs=500_000)
    assert large.total() == pytest.approx(small.total(), rel=0.02)
