"""What residency policies cost: the works that are about to get machines, planned once as they are and once without their policy.

An estimate, said to be one: both are planned by greed on what the rest of the plan leaves free, with the prices of that moment.
The solver relaxes nothing by asking. Counts bound the effort, never a clock, so that the same plan gives the same words.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping, Sequence

import msgspec

from solver import greedy
from solver.beside import ANYWHERE, beside
from solver.durations import PPM, SECOND_US
from solver.eligibility import survey, survey_one
from solver.problem import bills, state, unserved
from solver.schedule import Pool
from solver.types import OfferView, Plan, Snapshot, Start, Work
from solver.variants import as_run
from solver.view import View, pool_of

# So many works are planned again (of a large queue an eighth of them), the dearest of each policy and pool first; what is found
# holds for the others of the same two. 60 of 150 take half the time of their plan, 125 of 1,000 a fifth.
LEAST_WORKS, MOST_WORKS = 60, 150
# The cheapest offers that such a work could have with its policy, and without; looked for among so many, cheapest first.
WITH, WITHOUT, AMONG = 8, 12, 400


class PolicyShare(msgspec.Struct, frozen=True, kw_only=True):
    """One policy's part in what a start costs.

    `of_ppm`: millionths of the start's cost that works under this policy bear. `premium_ppm`: millionths of that which the policy
    costs, None where it is not known (works of that pool were not among those planned again). `instead_key`: what would be used
    more without the policy, None where that is no cheaper.
    """

    policy_hash: str
    policy: str
    of_ppm: int
    premium_ppm: int | None
    instead_key: str | None = None


Premiums = Mapping[tuple[str, Pool], tuple[int, str | None]]


def policy_shares(snapshot: Snapshot, plan: Plan, starts: Collection[Start]) -> dict[Start, tuple[PolicyShare, ...]]:
    """For each of the starts (of this plan) what part of its cost which policy has, ordered by hash; parts sum to the whole.

    A start that costs nothing has parts and no premium to speak of: 0.
    """
    snapshot = as_run(snapshot, plan)
    works = {work.id: work for work in snapshot.works}
    wanted = {(each.offer_key, Pool(each.project, each.model, each.precision)) for each in starts}
    borne: dict[tuple[str, Pool], dict[str, int]] = {}
    dearest: dict[str, dict[str, int]] = {}
    for each in plan.assignments:
        work = works[each.work_id]
        site = each.offer_key, pool_of(work)
        if site in wanted:
            of, cost = borne.setdefault(site, {}), dearest.setdefault(work.policy_hash, {})
            of[work.policy_hash] = of.get(work.policy_hash, 0) + each.cost_nano
            cost[work.id] = cost.get(work.id, 0) + each.cost_nano
    again = [works[each] for each in _dearest(works, dearest)]
    found = _premiums(snapshot, plan, again)
    sites = {start: (start.offer_key, Pool(start.project, start.model, start.precision)) for start in starts}
    return {start: _shares(snapshot, site[1], borne[site], found) for start, site in sites.items() if site in borne}


def _shares(snapshot: Snapshot, pool: Pool, borne: Mapping[str, int], found: Premiums) -> tuple[PolicyShare, ...]:
    total, upto, before = sum(borne.values()), 0, 0
    shares = []
    for at, policy_hash in enumerate(sorted(borne), start=1):
        upto += borne[policy_hash]
        until = upto * PPM // total if total else at * PPM // len(borne)
        premium, instead = (0, None) if not total else found.get((policy_hash, pool), (None, None))
        shares.append(
            PolicyShare(
                policy_hash=policy_hash,
                policy=snapshot.policies[policy_hash].name,
                of_ppm=until - before,
                premium_ppm=premium,
                instead_key=instead,
            )
        )
        before = until
    return tuple(shares)


def _dearest(works: Mapping[str, Work], dearest: Mapping[str, Mapping[str, int]]) -> list[str]:
    """Which works are planned again: the dearest of each policy and pool, then the second of each, and so on."""
    groups: dict[tuple[str, Pool], list[str]] = {}
    nano = {work_id: cost for costs in dearest.values() for work_id, cost in costs.items()}
    for work_id in sorted(nano, key=lambda each: (-nano[each], each)):
        groups.setdefault((works[work_id].policy_hash, pool_of(works[work_id])), []).append(work_id)
    turns = [each for turn in itertools.zip_longest(*groups.values()) for each in turn if each is not None]
    return turns[: min(MOST_WORKS, max(LEAST_WORKS, len(works) // 8))]


def _premiums(snapshot: Snapshot, plan: Plan, works: Sequence[Work]) -> Premiums:
    """By policy and pool of these works; what could not be planned again is not in it."""
    market = _Market(beside(snapshot, plan, {work.id for work in works}))
    by_policy: dict[str, list[Work]] = {}
    for work in works:
        by_policy.setdefault(work.policy_hash, []).append(work)
    found: dict[tuple[str, Pool], tuple[int, str | None]] = {}
    for policy_hash, own in sorted(by_policy.items()):
        rest = beside(snapshot, plan, {work.id for work in own})
        keys = market.near(own)
        rest = msgspec.structs.replace(
            rest,
            works=tuple(sorted(own, key=lambda work: work.id)),
            offers=tuple(each for each in rest.offers if each.key in keys),
            running=tuple(each for each in rest.running if each.offer_key in keys),
        )
        bound = _costs(rest)
        free = _costs(_freed(rest))
        for pool in bound.keys() & free.keys():
            cost, without = sum(bound[pool].values()), sum(free[pool].values())
            more = {key: nano - bound[pool].get(key, 0) for key, nano in free[pool].items()}
            instead = max(more, key=lambda key: (more[key], key))
            found[policy_hash, pool] = ((cost - without) * PPM // cost, instead) if without < cost else (0, None)
    return found


def _freed(snapshot: Snapshot) -> Snapshot:
    return msgspec.structs.replace(snapshot, policies=dict.fromkeys(snapshot.policies, ANYWHERE))


class _Market:
    """Where works could go as they are and without their policy, on what is left. Offers are ordered once a pool."""

    def __init__(self, rest: Snapshot) -> None:
        rest = msgspec.structs.replace(rest, works=())
        self._views = (View(rest), WITH), (View(_freed(rest)), WITHOUT)
        self._orders: dict[Pool, list[OfferView]] = {}

    def near(self, works: Sequence[Work]) -> set[str]:
        """Keys of the cheapest offers for the dearest work of each pool of `works`, which are ordered so."""
        first: dict[Pool, Work] = {}
        for work in works:
            first.setdefault(pool_of(work), work)
        keys = set[str]()
        for pool, work in first.items():
            if pool not in self._orders:
                self._orders[pool] = self._ordered(work)
            for view, most in self._views:
                open_ = (each.key for each in self._orders[pool][:AMONG] if _is_open(work, each, view))
                keys.update(itertools.islice(open_, most))
        return keys

    def _ordered(self, work: Work) -> list[OfferView]:
        """Offers by what their hours would cost, roughly; those of unknown speed are left out."""
        view = self._views[0][0]
        ranked = []
        for offer in view.snapshot.offers:
            if (busy := view.busy(work, offer)) is not None:
                ready_us = offer.timings_of(work.model).total_s * SECOND_US
                ranked.append(((offer.price_nano_hour or 0) * (ready_us + busy[0]), offer.key, offer))
        return [offer for *_, offer in sorted(ranked, key=lambda each: each[:2])]


def _is_open(work: Work, offer: OfferView, view: View) -> bool:
    return view.allows(work, offer) and survey_one(work, offer, view).is_eligible


def _costs(snapshot: Snapshot) -> dict[Pool, dict[str, int]]:
    """Nano-USD by offer, by pool whose works of the snapshot all have a place, by greed."""
    view = View(snapshot)
    problem = state(view, {work.id: survey(work, view) for work in snapshot.works})
    draft = greedy.place(problem)
    placed = {work.id for work in problem.works} - unserved(problem, draft).keys()
    missing = {pool_of(work) for work in snapshot.works if work.id not in placed}
    costs: dict[Pool, dict[str, int]] = {}
    for index, each in bills(problem, draft).items():
        site = problem.sites[index]
        if site.pool not in missing:
            of = costs.setdefault(site.pool, {})
            of[site.offer_key] = of.get(site.offer_key, 0) + each.total
    return costs
