"""The plan of now, and the plan of a question: both from one snapshot, nothing written, nothing rented."""

from __future__ import annotations

from dataclasses import dataclass

from broker.control.later import postponed
from broker.control.snapshot import freeze
from broker.services import Services
from jobs.clock import db_now
from solver import scarcity
from solver.check import check
from solver.errors import SolverError
from solver.scarcity import Scarce
from solver.types import SMALL, Plan, Snapshot
from solver.what_if import WhatIf, applied


@dataclass(frozen=True)
class Answer:
    """The plan asked for, with its snapshot; `today` is the plan of the same queue without the question, None without one."""

    snapshot: Snapshot
    plan: Plan
    today: Plan | None
    scarce: tuple[Scarce, ...] = ()


async def ask(services: Services, question: WhatIf | None) -> Answer:
    """Plan the queue as it is, and as the question would have it.

    Raises SolverError when the question names what is not there, or when a plan does not pass the checker: it is not shown.
    """
    async with services.database.transaction() as session:
        snapshot = (await freeze(session, services, now_us=await db_now(session))).snapshot
    snapshot, today = await _planned(services, snapshot)
    if question is None:
        return Answer(snapshot, today, None, await _scarce(services, snapshot, today))
    changed, plan = await _planned(services, applied(snapshot, question))
    return Answer(changed, plan, today)


async def _scarce(services: Services, snapshot: Snapshot, plan: Plan) -> tuple[Scarce, ...]:
    """What an instance more of the likeliest pools would save: a plan each, so large queues are not asked."""
    if len(snapshot.works) * len(snapshot.offers) > SMALL:
        return ()
    others = {}
    for key in scarcity.candidates(snapshot, plan):
        others[key] = await services.solver.solve(scarcity.with_one_more(snapshot, key))
    return scarcity.scarce(plan, others)


async def _planned(services: Services, snapshot: Snapshot) -> tuple[Snapshot, Plan]:
    plan = await services.solver.solve(snapshot)
    if found := check(snapshot, plan):
        raise SolverError(f"the plan breaks a rule and is not shown: {found[0].rule}: {found[0].message}")
    return await postponed(services, snapshot, plan)
