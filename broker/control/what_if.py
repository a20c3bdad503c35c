"""The plan of now, and the plan of a question: both from one snapshot, nothing written, nothing rented."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import msgspec
from sqlalchemy.ext.asyncio import AsyncSession

from broker.compliance.pinning import subject_of
from broker.compliance.proposals import in_force
from broker.control.asked_models import models_asked_of, with_model_facts
from broker.control.later import postponed
from broker.control.snapshot import freeze
from broker.services import Services
from jobs.clock import db_now
from solver import scarcity
from solver.check import check
from solver.errors import SolverError
from solver.scarcity import Scarce
from solver.types import SMALL, Plan, Snapshot
from solver.variants import faces
from solver.what_if import Standing, WhatIf, applied


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
        now_us = await db_now(session)
        snapshot = (await freeze(session, services, now_us=now_us)).snapshot
        changed = await _changed(session, services, snapshot, question, now_us) if question else snapshot
    snapshot, today = await _planned(services, snapshot)
    if question is None:
        return Answer(snapshot, today, None, await _scarce(services, snapshot, today))
    changed, plan = await _planned(services, changed)
    return Answer(changed, plan, today)


async def _changed(
    session: AsyncSession, services: Services, snapshot: Snapshot, question: WhatIf, now_us: int
) -> Snapshot:
    """A document that is asked about may ask of models what the policies of now do not."""
    known = await in_force(session, now_us)
    subjects = {each: subject_of(known, services.settings, each) for each in {work.project for work in snapshot.works}}
    standings = {name: Standing(node=each.node, data_class=each.data_class) for name, each in subjects.items()}
    changed = applied(snapshot, question, standings)
    if not question.policies:
        return changed
    works = await with_model_facts(session, services, changed.works, changed.policies, now_us)
    models = await models_asked_of(session, services, works, changed.policies, now_us)
    return msgspec.structs.replace(changed, works=tuple(works), models=models)


async def _scarce(services: Services, snapshot: Snapshot, plan: Plan) -> tuple[Scarce, ...]:
    """What an instance more of the likeliest pools would save: a plan each, so of large queues it is estimated."""
    if len(faces(snapshot.works)) * len(snapshot.offers) > SMALL:
        return await asyncio.to_thread(scarcity.estimated, snapshot, plan)
    others = {}
    for key in scarcity.candidates(snapshot, plan):
        others[key] = await services.solver.solve(scarcity.with_one_more(snapshot, key))
    return scarcity.scarce(plan, others)


async def _planned(services: Services, snapshot: Snapshot) -> tuple[Snapshot, Plan]:
    plan = await services.solver.solve(snapshot)
    if found := check(snapshot, plan):
        raise SolverError(f"the plan breaks a rule and is not shown: {found[0].rule}: {found[0].message}")
    return await postponed(services, snapshot, plan)
