"""The simple plan: one work after another, highest priority first, projects in turns, earliest deadline first; each where it
costs least then.

It is what remains when the program is stopped from outside, and what verifies a single work's relaxations. It looks at each work
once, so it can be dearer than the program; it is never wrong about a hard rule.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

from solver.durations import PPM
from solver.problem import Draft, Problem, bills, overspent, turns_of
from solver.restore import finish
from solver.schedule import Site, Task, bill, ceil_div, room_ppm
from solver.types import Work


@dataclass(frozen=True, slots=True)
class _Trial:
    """What it would take to serve `placed` more millionths at a site."""

    index: int
    counts: list[int]
    placed: int
    cost: int


def place(problem: Problem) -> Draft:
    """A draft that serves what it can; it never exceeds capacity, quota, deadlines or money."""
    draft = Draft()
    complete(problem, draft)
    return draft


def complete(problem: Problem, draft: Draft) -> None:
    """Serve what the draft does not, as far as that fits beside what it does."""
    sites_of: dict[str, list[tuple[int, Task]]] = {}
    for index, site in enumerate(problem.sites):
        for task in site.tasks:
            sites_of.setdefault(task.work.id, []).append((index, task))
    twins = {work.id: those for those in problem.twins().values() for work in those}
    firsts = [work for work in problem.works if twins.get(work.id, [work])[0] is work]
    turns = turns_of(firsts)
    for work in sorted(firsts, key=lambda work: (-work.priority, turns[work.id], work.deadline_us, work.id)):
        if work.id in twins:
            _serve_one(problem, draft, twins[work.id], sites_of)
        else:
            _serve_work(problem, draft, work, sites_of[work.id])
    finish(problem, draft)


def _serve_work(problem: Problem, draft: Draft, work: Work, places: list[tuple[int, Task]]) -> None:
    before = copy.deepcopy(draft) if problem.is_all_or_nothing(work) and not draft.served(work.id) else None
    _serve(problem, draft, places)
    if before and draft.served(work.id) < PPM:
        draft.counts, draft.shares = before.counts, before.shares


def _serve_one(problem: Problem, draft: Draft, twins: list[Work], sites_of: dict[str, list[tuple[int, Task]]]) -> None:
    """Each of the twins is tried: the one of which most is served stays, of several the cheapest."""
    trials = []
    for number, twin in enumerate(twins):
        trial = copy.deepcopy(draft)
        _serve_work(problem, trial, twin, sites_of[twin.id])
        cost = sum(each.total for each in bills(problem, trial).values())
        trials.append((-trial.served(twin.id) // 100, cost, number, trial))
    *_, best = min(trials, key=lambda each: each[:3])
    draft.counts, draft.shares = best.counts, best.shares


def cheapest_possible(problem: Problem, draft: Draft) -> int:
    """A bound that needs no solver: each served part at the cheapest instance time that any of its sites asks, start-up free."""
    total = 0
    cheapest: dict[str, int] = {}
    for site in problem.sites:
        price = min(each.price_nano_hour for each in site.classes)
        for task in site.tasks:
            nano = price * task.expected_us // 3_600_000_000
            cheapest[task.work.id] = min(nano, cheapest.get(task.work.id, nano))
    twins = problem.twins()
    for those in twins.values():
        least = min(cheapest[twin.id] for twin in those)
        cheapest |= {twin.id: least for twin in those}
    for work in problem.works:
        total += max(0, cheapest[work.id] - 1) * draft.served(work.id) // PPM
    return total


def _serve(problem: Problem, draft: Draft, places: list[tuple[int, Task]]) -> None:
    left = list(places)
    while left:
        wanted = PPM - draft.served(left[0][1].work.id)
        trials = [trial for index, task in left if (trial := _try(problem, draft, index, task, wanted))]
        if not wanted or not trials:
            return
        best = min(trials, key=lambda trial: (trial.cost / trial.placed, trial.index))
        task = next(task for index, task in left if index == best.index)
        left = [(index, task) for index, task in left if index != best.index]
        before_counts, before = draft.counts.get(best.index), draft.shares_at(best.index).get(task.work.id, 0)
        draft.counts[best.index] = best.counts
        draft.shares_at(best.index)[task.work.id] = before + best.placed
        if overspent(problem, draft):
            draft.counts[best.index] = before_counts or [0] * len(best.counts)
            draft.shares_at(best.index)[task.work.id] = before


def _try(problem: Problem, draft: Draft, index: int, task: Task, wanted: int) -> _Trial | None:
    site = problem.sites[index]
    counts = list(draft.counts_at(index, site))
    shares = dict(draft.shares_at(index))
    before = bill(site, counts, shares).total if any(shares.values()) else 0
    _enlarge(problem, draft, index, counts, task, wanted)
    placed = min(wanted, room_ppm(site, counts, shares, task)) if any(counts) else 0
    if placed <= 0:
        return None
    shares[task.work.id] = shares.get(task.work.id, 0) + placed
    return _Trial(index, counts, placed, bill(site, counts, shares).total - before)


def _enlarge(problem: Problem, draft: Draft, index: int, counts: list[int], task: Task, wanted: int) -> None:
    """Add instances, running ones first, until `wanted` fits or there are no more to have."""
    site = problem.sites[index]
    for kind, each in enumerate(site.classes):
        missing = wanted - (room_ppm(site, counts, draft.shares_at(index), task) if any(counts) else 0)
        if missing <= 0:
            return
        if task.due_us <= each.ready_us:
            continue
        needed = ceil_div(missing * task.cautious_us, PPM * (task.due_us - each.ready_us))
        most = rentable(problem, draft, site) if each.is_new else len(each.rentals) - counts[kind]
        counts[kind] += min(needed, max(0, most))


def rentable(problem: Problem, draft: Draft, site: Site) -> int:
    """How many more new instances of this offer capacity and quota leave."""
    at_offer = at_quota = 0
    for index, counts in draft.counts.items():
        other = problem.sites[index]
        if any(counts) and other.new_class is not None:
            count = counts[other.new_class]
            at_offer += count if other.offer_key == site.offer_key else 0
            at_quota += count * other.units if other.quota == site.quota else 0
    left = problem.capacity[site.offer_key] - at_offer
    return min(left, (problem.quota[site.quota] - at_quota) // site.units) if site.quota in problem.quota else left
