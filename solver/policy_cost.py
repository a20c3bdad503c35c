"""What residency policies cost: what the works that are about to get machines would cost without their policy.

A small queue is planned again without each policy in question, by the same program (`asked`, which the caller solves); the
difference is what the policy costs. A large one is estimated from what full offers are worth (`policy_estimate`), and said to be.
The solver relaxes nothing by asking. Counts bound the effort, never a clock, so that the same plan gives the same words.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Literal

import msgspec

from solver.beside import ANYWHERE
from solver.durations import PPM
from solver.policy_estimate import Group, estimated, near
from solver.schedule import Pool
from solver.types import SMALL, Assignment, Plan, Snapshot, Start
from solver.variants import as_run, faces
from solver.view import View, pool_of

# A queue of so many works at most is planned again, once for each of the dearest policies; each takes as long as its plan did.
MOST_WORKS, MOST_POLICIES = 60, 4


class PolicyShare(msgspec.Struct, frozen=True, kw_only=True):
    """One policy's part in what a start costs.

    `of_ppm`: millionths of the start's cost that works under this policy bear. `premium_ppm`: millionths of that which the policy
    costs, None where it is not known (more policies than are looked at). `instead_key`: what would be used more without the
    policy, None where that is no cheaper. `by`: whether the queue was `solved` again without it, or it is `estimated`.
    """

    policy_hash: str
    policy: str
    of_ppm: int
    premium_ppm: int | None
    instead_key: str | None = None
    by: Literal["solved", "estimated"] = "estimated"


Premiums = Mapping[tuple[str, Pool], tuple[int, str | None]]


@dataclass(slots=True)
class _Borne:
    """What works bear of the plan's cost: by place and policy, and by policy and pool whose works they are."""

    by_place: dict[tuple[str, Pool], Counter[str]] = field(default_factory=dict)
    groups: dict[tuple[str, Pool], Group] = field(default_factory=dict)


def asked(snapshot: Snapshot, plan: Plan, starts: Collection[Start]) -> dict[str, Snapshot]:
    """By policy hash what is to be solved for `policy_shares`: the works that have a place, without that policy. Empty for a
    large queue, or a plan that is not the program's own."""
    placed = {each.work_id for each in plan.assignments}
    if plan.stage != "program" or not 0 < len(placed) <= MOST_WORKS:
        return {}
    run = as_run(snapshot, plan)
    borne, dearest = _borne(run, plan, starts), Counter[str]()
    for (policy_hash, _), group in borne.groups.items():
        dearest[policy_hash] += group.cost_nano
    works = tuple(each for each in snapshot.works if each.id in placed)
    bare = msgspec.structs.replace(snapshot, works=works, words=False, held=(), records=(), waits=())
    many, found = len(faces(works)), {}
    for policy_hash in sorted(dearest, key=lambda each: (-dearest[each], each))[:MOST_POLICIES]:
        policies = {**snapshot.policies, policy_hash: ANYWHERE}
        keys = near(View(msgspec.structs.replace(run, policies=policies)), SMALL // many)
        keys |= {each.offer_key for each in plan.assignments} | {each.offer_key for each in snapshot.running}
        offers = tuple(each for each in snapshot.offers if each.key in keys)
        if many * len(offers) <= SMALL:
            found[policy_hash] = msgspec.structs.replace(bare, policies=policies, offers=offers)
    return found


def policy_shares(
    snapshot: Snapshot, plan: Plan, starts: Collection[Start], solved: Mapping[str, Plan] | None = None
) -> dict[Start, tuple[PolicyShare, ...]]:
    """For each of the starts (of this plan) what part of its cost which policy has, ordered by hash; parts sum to the whole.
    `solved` are the plans of what was `asked`, by policy hash.

    A start that costs nothing has parts and no premium to speak of: 0.
    """
    snapshot = as_run(snapshot, plan)
    borne = _borne(snapshot, plan, starts)
    exact: dict[tuple[str, Pool], tuple[int, str | None]] = {}
    for policy_hash, free in (solved or {}).items():
        exact |= _difference(snapshot, plan, free, policy_hash)
    rest = {key: group for key, group in borne.groups.items() if key not in exact}
    rough = estimated(snapshot, plan, rest) if rest else {}
    sites = {start: (start.offer_key, Pool(start.project, start.model, start.precision)) for start in starts}
    return {
        start: _shares(snapshot, site[1], borne.by_place[site], exact, rough)
        for start, site in sites.items()
        if site in borne.by_place
    }


def _borne(snapshot: Snapshot, plan: Plan, starts: Collection[Start]) -> _Borne:
    """Of the places of these starts; the groups have all their works, wherever these are."""
    works = {work.id: work for work in snapshot.works}
    wanted = {(each.offer_key, Pool(each.project, each.model, each.precision)) for each in starts}
    found, groups = _Borne(), dict[tuple[str, Pool], Group]()
    concerned = set[tuple[str, Pool]]()
    for each in plan.assignments:
        work = works[each.work_id]
        pool = pool_of(work)
        key, site = (work.policy_hash, pool), (each.offer_key, pool)
        groups.setdefault(key, Group()).add(work, each)
        if site in wanted:
            concerned.add(key)
            found.by_place.setdefault(site, Counter())[work.policy_hash] += each.cost_nano
    found.groups = {key: group for key, group in groups.items() if key in concerned}
    return found


def _shares(
    snapshot: Snapshot, pool: Pool, borne: Mapping[str, int], exact: Premiums, rough: Premiums
) -> tuple[PolicyShare, ...]:
    total, upto, before = sum(borne.values()), 0, 0
    shares = []
    for at, policy_hash in enumerate(sorted(borne), start=1):
        upto += borne[policy_hash]
        until = upto * PPM // total if total else at * PPM // len(borne)
        key = policy_hash, pool
        premium, instead = (0, None) if not total else exact.get(key) or rough.get(key) or (None, None)
        shares.append(
            PolicyShare(
                policy_hash=policy_hash,
                policy=snapshot.policies[policy_hash].name,
                of_ppm=until - before,
                premium_ppm=premium,
                instead_key=instead,
                by="solved" if key in exact or not total else "estimated",
            )
        )
        before = until
    return tuple(shares)


def _difference(
    snapshot: Snapshot, plan: Plan, free: Plan, policy_hash: str
) -> dict[tuple[str, Pool], tuple[int, str | None]]:
    """What the whole queue costs less in the plan without the policy, on the pools of its works where they cost less; nothing
    where that plan is not the program's, or serves any work less."""
    before, after = _served(plan), _served(free)
    if free.stage != "program" or any(after[work_id] < share for work_id, share in before.items()):
        return {}
    mine = {work.id: pool_of(work) for work in snapshot.works if work.policy_hash == policy_hash}
    bound, without = _by_pool(plan.assignments, mine), _by_pool(free.assignments, mine)
    less = {pool: max(0, costs.total() - without[pool].total()) for pool, costs in bound.items()}
    saving = min(max(0, plan.cost_nano - free.cost_nano), sum(less.values()))
    found: dict[tuple[str, Pool], tuple[int, str | None]] = {}
    for pool, costs in bound.items():
        premium = less[pool] * saving // sum(less.values()) * PPM // costs.total() if saving and costs.total() else 0
        more = {key: nano - costs[key] for key, nano in without[pool].items()}
        instead = max(more, key=lambda key: (more[key], key)) if premium and more else None
        found[policy_hash, pool] = (premium, instead) if instead else (0, None)
    return found


def _served(plan: Plan) -> Counter[str]:
    served = Counter[str]()
    for each in plan.assignments:
        served[each.work_id] += each.share_ppm
    return served


def _by_pool(assignments: Collection[Assignment], mine: Mapping[str, Pool]) -> dict[Pool, Counter[str]]:
    """By pool of these works what they cost at each offer."""
    costs: dict[Pool, Counter[str]] = {pool: Counter() for pool in mine.values()}
    for each in assignments:
        if each.work_id in mine:
            costs[mine[each.work_id]][each.offer_key] += each.cost_nano
    return costs
