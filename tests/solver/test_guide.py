"""The search for a bound guides the plan: from a program's prices, and from a first placement where no program is solved."""

from __future__ import annotations

import msgspec
import pytest

from benchmarks.solver_world import world
from solver.check import check
from solver.fluid import queue
from solver.plan import solve_large
from solver.types import Plan, Snapshot
from solver.view import View


@pytest.fixture(scope="module")
def plain() -> Snapshot:
    """A queue without quotas and budgets, as the search takes it."""
    return world(150, 70)


@pytest.fixture(scope="module")
def by_program(plain: Snapshot) -> Plan:
    return solve_large(View(plain), is_program=True)


def by_search(snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch) -> Plan:
    monkeypatch.setattr(queue, "PROGRAM_CLASSES", 0)
    return solve_large(View(snapshot), is_program=True)


def test_without_a_program_the_plan_is_as_good_and_proven_as_well(
    plain: Snapshot, by_program: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = by_search(plain, monkeypatch)
    assert not check(plain, found)
    assert found.bound_nano <= found.class_bound_nano <= found.cost_nano <= 1.02 * by_program.cost_nano
    assert found.class_bound_nano >= 0.98 * by_program.class_bound_nano


def test_each_bound_holds_for_the_plan_that_the_other_way_found(
    plain: Snapshot, by_program: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = by_search(plain, monkeypatch)
    assert found.bound_nano <= by_program.cost_nano and by_program.bound_nano <= found.cost_nano


def test_a_search_without_a_program_gives_the_same_bytes(plain: Snapshot, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = (msgspec.json.encode(by_search(plain, monkeypatch)) for _ in range(2))
    assert first == second
