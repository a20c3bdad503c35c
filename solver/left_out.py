"""A queue without the works that a plan broke a rule with: for whoever has no other plan, and would stop all the rest.

That a plan breaks a rule is a defect of the planner. It must not be carried out, and it must not stop every project either: what
the checker names waits, visibly, and the others are planned without it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final, Literal

import msgspec

from solver.check import Violation
from solver.types import Chosen, Plan, Rule, Snapshot, Unplaced, sha256

Waits = Literal["capacity", "budget", "residency", "price_ceiling", "quota", "deadline", "model", "latency"]
# What a work waits on whose plan broke this rule; "capacity" of any other.
WAITS: Final[Mapping[str, Waits]] = {
    "residency": "residency",
    "latency": "latency",
    "deadline": "deadline",
    "work_limit": "price_ceiling",
    "unfit": "model",
    "model": "model",
}


def blamed(plan: Plan, violations: Iterable[Violation]) -> dict[str, Violation]:
    """The first violation of each work that is named, or that is at an offer of which nothing else is named. Empty where the
    violations are of no work (a sum, a budget)."""
    found: dict[str, Violation] = {}
    for each in violations:
        if each.work_id is not None:
            found.setdefault(each.work_id, each)
        elif each.offer_key is not None:
            for assignment in plan.assignments:
                if assignment.offer_key == each.offer_key:
                    found.setdefault(assignment.work_id, each)
    return found


def without(snapshot: Snapshot, work_ids: Iterable[str]) -> Snapshot:
    """The snapshot as if these works were not queued."""
    out = frozenset(work_ids)
    return msgspec.structs.replace(
        snapshot,
        works=tuple(each for each in snapshot.works if each.id not in out),
        held=tuple(each for each in snapshot.held if each.work_id not in out),
        refusals=tuple(each for each in snapshot.refusals if each.work_id not in out),
    )


def left_out(snapshot: Snapshot, rest: Plan, broken: Mapping[str, Violation]) -> Plan:
    """`rest`, the plan of the snapshot without the works of `broken`, as a plan of the snapshot in which these wait."""
    own = [work for work in snapshot.works if work.id in broken]
    unplaced = tuple(
        Unplaced(
            work_id=work.id,
            waiting_on=WAITS.get(broken[work.id].rule, "capacity"),
            reasons=(
                f"a defect of the planner: its place for this batch breaks the rule {broken[work.id].rule} "
                f"({broken[work.id].message}); it waits, and every plan tries again",
            ),
        )
        for work in own
    )
    variants = tuple(
        Chosen(work_id=work.id, model=work.model, precision=work.precision) for work in own if work.alternatives
    )
    rules = Rule(rule="defect", count=len(snapshot.offers)), Rule(rule="eligible", count=0)
    return msgspec.structs.replace(
        rest,
        snapshot_sha256=sha256(snapshot),
        unplaced=(*rest.unplaced, *unplaced),
        variants=(*rest.variants, *variants),
        funnels={**rest.funnels, **({work.id: rules for work in own} if rest.funnels or snapshot.words else {})},
    )
