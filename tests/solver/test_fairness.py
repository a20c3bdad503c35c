"""When not all can be served: priority first, and no project is left out because another has more waiting."""

from __future__ import annotations

from typing import Any

import pytest

from solver.check import check
from solver.plan import solve


@pytest.mark.parametrize("stage", ["program", "greedy"])
def test_a_project_with_one_batch_is_not_starved_by_one_with_ten(town: Any, stage: Any) -> None:
    """Its batch is due last; by deadlines alone the ten would take all five machines."""
    many = [town.work(f"many_{number}", 9.5, project="many", within_h=10) for number in range(10)]
    one = town.work("one", 9.5, project="one", within_h=10.01)
    snapshot = town.snapshot([*many, one], [town.offer("x/1", 1.0, capacity=5)])
    plan = solve(snapshot, stage=stage)
    assert check(snapshot, plan) == []
    served = {each.work_id for each in plan.assignments if each.share_ppm == 1_000_000}
    assert "one" in served
    assert "one" not in {each.work_id for each in plan.unplaced}


@pytest.mark.parametrize("stage", ["program", "greedy"])
def test_priority_goes_before_fairness(town: Any, stage: Any) -> None:
    urgent = [town.work(f"urgent_{number}", 9.5, project="many", within_h=10, priority=5) for number in range(5)]
    one = town.work("one", 9.5, project="one", within_h=10)
    snapshot = town.snapshot([*urgent, one], [town.offer("x/1", 1.0, capacity=5)])
    plan = solve(snapshot, stage=stage)
    assert [each.work_id for each in plan.unplaced] == ["one"]
