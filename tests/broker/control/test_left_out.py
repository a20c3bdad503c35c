"""A planner with a defect: the works that it breaks a rule with wait, and the others go on."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
import pytest

from broker.compliance.pinning import store_policy
from broker.control import checked
from broker.control.plan import Planner
from jobs.clock import db_now
from jobs.tables import Batch
from solver.plan import solve
from solver.residency import compile_countries
from solver.types import Plan, Snapshot, sha256


class Careless:
    """A planner that asks no policy: in each stage, as the program and greed of large queues once did (one work stood for all
    whose policy was the same)."""

    def __init__(self, allowed: str) -> None:
        self.allowed = allowed

    async def solve(self, snapshot: Snapshot) -> Plan:
        return self.plan(snapshot)

    def plan(self, snapshot: Snapshot, *, stage: str = "program") -> Plan:
        policies = dict.fromkeys(snapshot.policies, snapshot.policies[self.allowed])
        found = solve(msgspec.structs.replace(snapshot, policies=policies))
        return msgspec.structs.replace(found, snapshot_sha256=sha256(snapshot))


@pytest.fixture
async def torn(town: Any, monkeypatch: Any) -> tuple[Planner, str, str]:
    """A planner without care, a batch that may run where the machines are, and one that may not."""
    await town.list_offers(town.offer())
    good, bad = await town.batch(), await town.batch()
    async with town.database.transaction() as session:
        strict = await store_policy(session, compile_countries(["FR"]), await db_now(session))
        (await session.get_one(Batch, bad)).policy_hash = strict
        careless = Careless((await session.get_one(Batch, good)).policy_hash)
    monkeypatch.setattr(checked, "solve", careless.plan)
    return Planner(replace(town.services, solver=careless)), good, bad


async def test_a_batch_that_no_plan_may_serve_by_the_checker_holds_no_other_back(town: Any, torn: Any) -> None:
    """Both stages broke a rule with one of two batches: nothing was planned for any project, as long as it was queued."""
    planner, good, bad = torn
    await planner.step()
    assert [row.purpose["batches"] for row in await town.intents()] == [[good]]
    assert await town.assigned(bad) == []
    waits = await town.waiting(bad)
    assert waits.waiting_on == "residency" and "a defect of the planner" in waits.reasons[0]


async def test_a_plan_that_breaks_a_rule_with_nothing_by_name_is_not_carried_out(
    town: Any, torn: Any, monkeypatch: Any
) -> None:
    """A wrong sum is of no batch: leaving any out would mend nothing."""

    def wrong(snapshot: Snapshot, *, stage: str) -> Plan:
        return msgspec.structs.replace(solve(snapshot), bound_nano=10**18)

    monkeypatch.setattr(checked, "solve", wrong)
    await torn[0].step()
    assert await town.intents() == []
