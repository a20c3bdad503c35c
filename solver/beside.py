"""A few works of a plan by themselves: what the rest of the plan leaves to them, and the offers that may matter to them.

Questions of a person ("what would be cheaper", "what does this policy cost") are answered by solving these again, changed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection

import msgspec

from solver.eligibility import Verdict, new_instances, survey, whole_cost
from solver.residency import Policy, PolicyRule
from solver.types import Budget, Plan, Quota, Snapshot, Work
from solver.view import View, pool_of

# Offers of each kind (eligible, only residency, time or stock against them) that are looked at, cheapest first.
LOOKED_AT = 40
ANYWHERE = Policy(
    name="anywhere",
    rules=(
        PolicyRule(
            id="anywhere",
            effect="allow",
            field="location_tier",
            values=("anonymous", "claimed", "verified_host", "named_datacenter", "hyperscaler_region"),
        ),
    ),
)
"""No policy at all: what a policy is compared with."""


def alone_nano(verdict: Verdict, snapshot: Snapshot) -> int:
    """What the whole work costs alone on this offer, of which it is known how long it takes there."""
    if verdict.task is None:
        raise ValueError(f"nobody knows how long it takes on {verdict.offer.key}")
    classes = verdict.classes or (new_instances(verdict.offer, verdict.task.work.model, snapshot),)
    return min(whole_cost(verdict.task, each) for each in classes)


def beside(snapshot: Snapshot, plan: Plan, ids: Collection[str]) -> Snapshot:
    """What the plan leaves to these works: all but what is started or kept where only others run."""
    works = {each.id: each for each in snapshot.works}
    own = {(each.offer_key, pool_of(works[each.work_id])) for each in plan.assignments if each.work_id in ids}
    others = {
        (each.offer_key, pool_of(works[each.work_id])) for each in plan.assignments if each.work_id not in ids
    } - own
    capacity: Counter[str] = Counter()
    quota: Counter[str] = Counter()
    budget: Counter[str] = Counter()
    offers = {each.key: each for each in snapshot.offers}
    places = {(key, *pool) for key, pool in others}
    for start in plan.starts:
        if (start.offer_key, start.project, start.model, start.precision) in places:
            capacity[start.offer_key] += start.count
            offer = offers[start.offer_key]
            quota[offer.quota_group] += start.count * offer.quota_units
            budget[start.project] += start.cost_nano
    kept = set(plan.keeps)
    return msgspec.structs.replace(
        snapshot,
        offers=tuple(
            msgspec.structs.replace(each, capacity=(1 if each.capacity is None else each.capacity) - capacity[each.key])
            if capacity[each.key]
            else each
            for each in snapshot.offers
        ),
        quotas=tuple(
            Quota(market=each.market, remaining=each.remaining - quota[each.market]) for each in snapshot.quotas
        ),
        budgets=tuple(
            Budget(project=each.project, remaining_nano=each.remaining_nano - budget[each.project])
            for each in snapshot.budgets
        ),
        running=tuple(
            each
            for each in snapshot.running
            if each.rental_id not in kept or (each.offer_key, each.project, each.model, each.precision) not in places
        ),
    )


def near(snapshot: Snapshot, work: Work) -> Snapshot:
    """The offers that may matter: of those with nothing, or with one kind of rule against them, the cheapest."""
    verdicts = survey(work, View(msgspec.structs.replace(snapshot, works=(work,))))
    groups: dict[str, list[tuple[int, str]]] = {}
    for each in verdicts:
        words = {broken.rule for broken in each.broken}
        if each.task is None or len(words) > 1 or not words <= {"residency", "latency", "deadline", "sold_out"}:
            continue
        groups.setdefault("".join(words), []).append((alone_nano(each, snapshot), each.offer.key))
    keys = {key for those in groups.values() for _, key in sorted(those)[:LOOKED_AT]}
    return msgspec.structs.replace(
        snapshot,
        offers=tuple(each for each in snapshot.offers if each.key in keys),
        running=tuple(each for each in snapshot.running if each.offer_key in keys),
    )
