"""What policies cost a large queue, estimated: each group of works of one policy and pool is priced with its policy and without.

An hour of an offer counts its price and, where the plan takes all that there is of it, what such an hour is worth to the plan:
the shadow price of its stock, here what the work there that would lose least would pay more at its next best. No offer takes more
of a policy's works than its machines can do in time. Both sides are priced the same way and only the ratio is used, so that what
is rough about it is rough on both.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest

import msgspec

from solver.beside import ANYWHERE, alone_nano
from solver.durations import PPM, SECOND_US
from solver.eligibility import is_rentable, survey_one
from solver.schedule import Pool, ceil_div
from solver.types import HOUR_US, Assignment, OfferView, Plan, Snapshot, Work
from solver.view import View, pool_of

# So many groups are priced, the dearest of each policy first; others of a policy are taken to bear what these do on the mean.
MOST_GROUPS = 250
# The cheapest offers that a group could have with its policy, and without; looked for among so many, cheapest first.
WITH, WITHOUT, AMONG = 4, 6, 400
# What is full is judged by so many works of it, of so many offers, the dearest, each at so many others.
MOST_AT, MOST_FULL, NEXT = 4, 60, 2


_Used = defaultdict[str, float]


@dataclass(slots=True)
class Group:
    """Works of one policy and pool, with the parts of the plan that serve them."""

    works: dict[str, Work] = field(default_factory=dict)
    parts: list[Assignment] = field(default_factory=list)

    def add(self, work: Work, part: Assignment) -> None:
        self.works[work.id] = work
        self.parts.append(part)

    @property
    def cost_nano(self) -> int:
        return sum(each.cost_nano for each in self.parts)

    def as_one(self, name: str) -> Work:
        """All of them as one work, due when they are on the mean (by what they cost)."""
        shares = Counter[str]()
        for each in self.parts:
            shares[each.work_id] += each.share_ppm
        total = max(1, self.cost_nano)
        first = self.works[min(self.works)]
        costs = Counter[str]()
        for each in self.parts:
            costs[each.work_id] += each.cost_nano
        due = sum(self.works[key].deadline_us * nano for key, nano in costs.items()) // total or first.deadline_us

        def of(what: str) -> int:
            return sum(int(getattr(self.works[key], what)) * share for key, share in shares.items()) // PPM

        return msgspec.structs.replace(
            first,
            id=name,
            lines=max(1, of("lines")),
            input_tokens=of("input_tokens"),
            output_tokens_p50=of("output_tokens_p50"),
            output_tokens_p90=of("output_tokens_p90"),
            input_bytes=of("input_bytes"),
            output_bytes=of("output_bytes"),
            deadline_us=due,
            max_nano=None,
        )


@dataclass(frozen=True, slots=True)
class _Option:
    """An offer where a group may run: what all of it costs there, and how much of so many machines' time that takes."""

    nano: int
    key: str
    needed: float
    there: int


def estimated(
    snapshot: Snapshot, plan: Plan, groups: Mapping[tuple[str, Pool], Group]
) -> dict[tuple[str, Pool], tuple[int, str | None]]:
    """By group what part of its cost its policy is, in millionths, and where more of it would run without."""
    chosen = _dearest(groups)
    pricing = _Pricing(snapshot, plan, {key: (f"group-{n:06}", groups[key]) for n, key in enumerate(chosen)})
    used: dict[str, tuple[_Used, _Used]] = defaultdict(lambda: (defaultdict(float), defaultdict(float)))
    found: dict[tuple[str, Pool], tuple[int, str | None]] = {}
    bound_of, free_of = Counter[str](), Counter[str]()
    for key in chosen:
        bound, free = pricing.options(key, {each.offer_key for each in groups[key].parts})
        if not bound:
            continue
        costs, without = _filled(bound, used[key[0]][0]), _filled(free, used[key[0]][1])
        saves = max(0, costs.total() - without.total())
        bound_of[key[0]] += costs.total()
        free_of[key[0]] += costs.total() - saves
        more = {each: nano - costs[each] for each, nano in without.items()}
        found[key] = (
            (saves * PPM // costs.total(), max(more, key=lambda each: (more[each], each))) if saves else (0, None)
        )
    for key in groups.keys() - found.keys():
        if bound_of[key[0]]:
            found[key] = (bound_of[key[0]] - free_of[key[0]]) * PPM // bound_of[key[0]], None
    return found


def near(view: View, most: int) -> set[str]:
    """Keys of the cheapest offers that works of each pool could have, so many in all at most."""
    first: dict[Pool, Work] = {}
    for work in view.snapshot.works:
        first.setdefault(pool_of(work), work)
    rented = [each for each in view.snapshot.offers if is_rentable(each, view)]
    keys = set[str]()
    for work in first.values():
        keys.update(each.key for each in ordered(view, rented, work)[: max(2 * WITHOUT, most // (2 * len(first)))])
    return keys


def ordered(view: View, offers: Iterable[OfferView], work: Work) -> list[OfferView]:
    """Offers by what their hours would cost the work, roughly; those of unknown speed are left out."""
    ranked = []
    for offer in offers:
        if (busy := view.busy(work, offer)) is not None:
            ready_us = offer.timings_of(work.model).total_s * SECOND_US
            ranked.append(((offer.price_nano_hour or 0) * (ready_us + busy[0]), offer.key, offer))
    return [offer for *_, offer in sorted(ranked, key=lambda each: each[:2])]


class Orders:
    """The offers that may be rented, cheapest first, for each pool: by the largest of its works."""

    def __init__(self, view: View) -> None:
        self._view = view
        self._rented = [each for each in view.snapshot.offers if is_rentable(each, view)]
        self._largest: dict[Pool, Work] = {}
        for work in view.snapshot.works:
            before = self._largest.setdefault(pool_of(work), work)
            if work.input_tokens + work.output_tokens_p50 > before.input_tokens + before.output_tokens_p50:
                self._largest[pool_of(work)] = work
        self._found: dict[Pool, list[OfferView]] = {}

    def of(self, pool: Pool) -> list[OfferView]:
        if pool not in self._found:
            self._found[pool] = ordered(self._view, self._rented, self._largest[pool])[:AMONG]
        return self._found[pool]


def worth(view: View, plan: Plan, orders: Orders) -> dict[str, int]:
    """By offer that the plan takes to the last, what an instance-hour of it is worth besides its price, in nano-USD: what the
    work there (of a few) that would lose least would pay more where something is left. Where nothing is left, nobody knows."""
    started = Counter[str]()
    for start in plan.starts:
        started[start.offer_key] += start.count
    full = {key for key, count in started.items() if count >= (view.offers[key].capacity or 1)}
    there: dict[str, list[Assignment]] = {}
    for part in plan.assignments:
        if part.offer_key in full:
            there.setdefault(part.offer_key, []).append(part)
    dearest = sorted(there, key=lambda key: (-sum(each.cost_nano for each in there[key]), key))[:MOST_FULL]
    works = {work.id: work for work in view.snapshot.works}
    found: dict[str, int] = {}
    for key in dearest:
        largest = sorted(there[key], key=lambda each: (-each.cost_nano, each.work_id))[:MOST_AT]
        more = [_more_elsewhere(works[each.work_id], each, full, view, orders) for each in largest]
        if known := [each for each in more if each is not None]:
            found[key] = min(known)
    return found


def _more_elsewhere(work: Work, part: Assignment, full: set[str], view: View, orders: Orders) -> int | None:
    """Nano-USD that the work costs more, for each hour here, at the cheapest of a few offers of which something is left."""
    busy, others = view.busy(work, view.offers[part.offer_key]), list[int]()
    for each in orders.of(pool_of(work)):
        if len(others) == NEXT:
            break
        if each.key not in full and view.allows(work, each) and (verdict := survey_one(work, each, view)).is_eligible:
            others.append(alone_nano(verdict, view.snapshot))
    if not others or busy is None:
        return None
    paid = part.cost_nano * PPM // max(1, part.share_ppm)  # its part of a start-up that goes on without it
    return max(0, min(others) - paid) * HOUR_US // max(1, busy[0])


class _Pricing:
    """Prices of groups (by their names here) on what there is, each as if it were one work."""

    def __init__(self, snapshot: Snapshot, plan: Plan, groups: Mapping[tuple[str, Pool], tuple[str, Group]]) -> None:
        whole = View(snapshot)
        self._orders = Orders(whole)
        self._worth = worth(whole, plan, self._orders)
        self._ones = {key: group.as_one(name) for key, (name, group) in groups.items()}
        facts = {name: snapshot.models.get(min(group.works)) for name, group in groups.values()}
        rest = msgspec.structs.replace(
            snapshot, works=tuple(sorted(self._ones.values(), key=lambda one: one.id)), budgets=(), refusals=(), quotas=(),
            held=(), records=(), waits=(), models={name: each for name, each in facts.items() if each is not None},
        )  # fmt: skip
        self._bound = View(rest)
        self._free = View(msgspec.structs.replace(rest, policies=dict.fromkeys(rest.policies, ANYWHERE)))

    def options(self, key: tuple[str, Pool], own: set[str]) -> tuple[list[_Option], list[_Option]]:
        """Where the group may run with its policy, and without; its `own` places are among both."""
        one, pool = self._ones[key], key[1]
        bound = {name: found for name in sorted(own) if (found := self._option(one, pool, self._bound.offers[name]))}
        free = dict(bound)
        for offer in self._orders.of(pool):
            if len(bound) >= WITH and len(free) >= WITHOUT:
                break
            is_allowed = len(bound) < WITH and self._bound.allows(one, offer)
            if offer.key in bound or not (is_allowed or len(free) < WITHOUT):
                continue
            found = free.get(offer.key) or self._option(one, pool, offer)
            if found is not None:
                free[offer.key] = found
                if is_allowed:
                    bound[offer.key] = found
        return list(bound.values()), list(free.values())

    def _option(self, one: Work, pool: Pool, offer: OfferView) -> _Option | None:
        verdict = survey_one(one, offer, self._free)
        if not verdict.is_eligible or verdict.task is None:
            return None
        scarce = ceil_div(self._worth.get(offer.key, 0) * verdict.task.expected_us, HOUR_US)
        there = (1 if offer.capacity is None else offer.capacity) + len(self._bound.running.get((offer.key, pool), ()))
        spare_us = verdict.task.due_us - min(each.ready_us for each in verdict.classes)
        needed = verdict.task.cautious_us / spare_us
        return _Option(alone_nano(verdict, self._free.snapshot) + scarce, offer.key, needed, max(1, there))


def _filled(options: Sequence[_Option], used: _Used) -> Counter[str]:
    """What the group costs by offer, the cheapest filled first; what finds no room costs what the dearest of them does."""
    costs, left = Counter[str](), float(1)
    ranked = sorted(options, key=lambda each: (each.nano, each.key))
    for each in ranked:
        part = min(left, max(0.0, each.there - used[each.key]) / each.needed)
        if part > 0:
            costs[each.key] += round(part * each.nano)
            used[each.key] += part * each.needed
            left -= part
        if left <= 1e-9:
            return costs
    costs[ranked[-1].key] += round(left * ranked[-1].nano)
    return costs


def _dearest(groups: Mapping[tuple[str, Pool], Group]) -> list[tuple[str, Pool]]:
    """The dearest group of each policy, then the second of each, and so on."""
    ranked: dict[str, list[tuple[str, Pool]]] = {}
    for key in sorted(groups, key=lambda each: (-groups[each].cost_nano, each)):
        ranked.setdefault(key[0], []).append(key)
    turns = (each for turn in zip_longest(*ranked.values()) for each in turn if each is not None)
    return list(turns)[:MOST_GROUPS]
