"""The planner's process: asked, too slow, dead, asked wrongly. There is always a plan, and the next question is answered."""

from __future__ import annotations

from collections.abc import AsyncIterator

import msgspec
import psutil
import pytest

from broker.control.solver_process import SolverProcess
from solver.check import check
from solver.errors import SolverError
from solver.types import Snapshot
from tests.solver.conftest import Town


def snapshot() -> Snapshot:
    town = Town()
    return town.snapshot([town.work("a")], [town.offer("x/1")])


def children() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if child.cmdline()[1:] == ["-m", "solver"]]


@pytest.fixture
async def process() -> AsyncIterator[SolverProcess]:
    process = SolverProcess(timeout_s=60)
    yield process
    await process.close()
    assert children() == [], "it is gone with its broker"


async def test_a_child_plans_and_stays_also_when_it_refuses_a_question(process: SolverProcess) -> None:
    plan = await process.solve(snapshot())
    assert (plan.stage, plan.stopped_by) == ("program", "optimal")
    (child,) = children()
    asked = snapshot()
    twice = msgspec.structs.replace(asked, works=asked.works * 2)
    with pytest.raises(SolverError, match="bad_snapshot"):
        await process.solve(twice)
    assert await process.solve(snapshot()) == plan
    assert children() == [child]


async def test_a_child_that_died_is_replaced_and_its_question_answered_by_greed(process: SolverProcess) -> None:
    first = await process.solve(snapshot())
    (child,) = children()
    child.kill()
    child.wait(10)
    plans = [await process.solve(snapshot()) for _ in range(2)]
    assert {(plan.stage, plan.stopped_by) for plan in plans} <= {("greedy", "clock"), ("program", "optimal")}
    assert plans[-1] == first, "the one after it plans as the first did"
    assert all(check(snapshot(), plan) == [] for plan in plans)


async def test_a_child_that_is_too_slow_is_killed_and_greed_plans() -> None:
    process = SolverProcess(timeout_s=0.01)  # no Python starts within that
    plan = await process.solve(snapshot())
    assert (plan.stage, plan.stopped_by) == ("greedy", "clock")
    assert check(snapshot(), plan) == []
    assert children() == []


async def test_a_plan_longer_than_the_pipe_takes_ended_the_plan_loop(
    process: SolverProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("broker.control.solver_process.MOST_BYTES", 64)
    plan = await process.solve(snapshot())
    assert (plan.stage, plan.stopped_by) == ("greedy", "clock")
    assert children() == [], "the rest of its line would be the next question's answer"
    monkeypatch.undo()
    assert (await process.solve(snapshot())).stage == "program"
