"""A plan that keeps every rule, by the checker's word: the program's, else greed's, else one without what broke a rule."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

import structlog

from broker.services import Services
from solver.check import Violation, check
from solver.left_out import blamed, left_out, without
from solver.plan import solve
from solver.types import Plan, Snapshot

log = structlog.get_logger()
# How often works are left out: what is planned without them may break a rule with others.
ROUNDS = 3


async def checked_plan(services: Services, snapshot: Snapshot) -> Plan | None:
    """A plan without violations; None rather than a forbidden plan."""
    started_s = time.monotonic()
    plan = await services.solver.solve(snapshot)
    services.counters.planned(plan, time.monotonic() - started_s)
    if not _broken(services, snapshot, plan, plan.stage):
        return plan
    plan = await asyncio.to_thread(solve, snapshot, stage="greedy")
    out: dict[str, Violation] = {}
    for _ in range(ROUNDS):
        violations = _broken(services, snapshot, plan, "greedy")
        if not violations:
            return plan
        named = blamed(plan, violations)
        if not named.keys() - out.keys():
            return None
        out |= named
        # an error for each plan: it wants a person, for these batches wait until the planner is mended
        log.error("plan.left_out", batches=sorted(out), violations=_told(violations))
        rest = await asyncio.to_thread(solve, without(snapshot, out), stage="greedy")
        plan = left_out(snapshot, rest, out)
    return plan if not _broken(services, snapshot, plan, "greedy") else None


def _broken(services: Services, snapshot: Snapshot, plan: Plan, stage: str) -> list[Violation]:
    violations = check(snapshot, plan)
    if violations:
        services.counters.plan_refused(stage)
        log.error("plan.refused", stage=stage, violations=_told(violations))
    return violations


def _told(violations: Sequence[Violation]) -> list[str]:
    return [f"{each.rule}: {each.message}" for each in violations[:5]]
