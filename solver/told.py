"""The words of one work of a plan: those that the plan has, or else made of the snapshot that it was made of.

A plan depends on nothing but its snapshot, so what is told later is what would have been told then.
"""

from __future__ import annotations

import msgspec

from solver.eligibility import Funnel
from solver.types import Choice, Plan, Snapshot
from solver.variants import as_run
from solver.view import View


def told(snapshot: Snapshot, plan: Plan, work_id: str) -> tuple[Funnel, Choice | None]:
    """How many offers each rule excluded for the work, and why it is where it is; None where it has no place.

    Raises KeyError when the snapshot has no such work.
    """
    choice = next((each for each in plan.choices if each.work_id == work_id), None)
    if funnel := plan.funnels.get(work_id):
        return funnel, choice
    snapshot = as_run(snapshot, plan)
    work = {each.id: each for each in snapshot.works}[work_id]
    # Imported here: small queues, whose plans have their words, do without these tables.
    from solver.fluid.reasons import reasons_of  # noqa: PLC0415

    alone = msgspec.structs.replace(snapshot, works=(work,), held=())
    reasons = reasons_of(View(alone))
    choices = reasons.choices([each for each in plan.assignments if each.work_id == work_id])
    return reasons.funnels()[work_id], choices[0] if choices else None
