"""Deadline work is not put on spot of one failure domain alone: a region loses its machines together, and traces of 16 nodes
lose 7 to 11 of them at once. Where the work takes several machines and another domain costs hardly more, half of them go there.

A preference and no rule: it never costs more than a little, and never makes anything late or unserved. Zones of a region are one
domain.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from solver.durations import PPM
from solver.greedy import rentable
from solver.problem import Draft, Problem, overspent
from solver.schedule import Site, bill, is_on_time

# Fewer machines than this are not worth a second start-up, and more than this part of them in one domain is too many.
LEAST_MACHINES, MOST_PART = 4, 0.5
# What spreading may cost at most, as a part of what the machines cost that are spread.
MOST_EXTRA = 0.02
# Offers of a crowded domain that machines are moved from, those with most first.
SOURCES = 8


@dataclass(frozen=True, slots=True)
class _Load:
    """A site's instances and shares, before or after."""

    counts: list[int]
    shares: dict[str, int]


def spread(problem: Problem, draft: Draft, domains: Mapping[str, str]) -> None:
    """Move machines out of crowded domains, in the draft. `domains` has the failure domain of each offer whose machines may be
    taken away; others cannot be lost together."""
    for pool in sorted({site.pool for site in problem.sites}):
        sites = [index for index, site in enumerate(problem.sites) if site.pool == pool]
        if found := crowded(problem, draft, sites, domains):
            relieve(problem, draft, domains, *found)


def crowded(
    problem: Problem, draft: Draft, sites: Sequence[int], domains: Mapping[str, str]
) -> tuple[list[int], int] | None:
    """Of a pool's sites those in a domain that has too many of its machines, those with most first; and how many are too many."""
    machines = {index: sum(draft.counts_at(index, problem.sites[index])) for index in sites}
    by_domain: dict[str, int] = {}
    for index in sites:
        domain = domains.get(problem.sites[index].offer_key)
        if domain is not None:
            by_domain[domain] = by_domain.get(domain, 0) + machines[index]
    most = max(by_domain, key=lambda each: (by_domain[each], each), default=None)
    total = sum(machines.values())
    if most is None or total < LEAST_MACHINES or by_domain[most] <= MOST_PART * total:
        return None
    there = [index for index in sites if domains.get(problem.sites[index].offer_key) == most and machines[index]]
    there = sorted(there, key=lambda index: (-machines[index], index))[:SOURCES]
    return there, by_domain[most] - int(MOST_PART * total)


def relieve(problem: Problem, draft: Draft, domains: Mapping[str, str], there: Sequence[int], many: int) -> int:
    """Move up to so many machines of these sites out of their domain, in the draft; how many were."""
    left = many
    for source in there:
        left -= _move(problem, draft, domains, source, left) if left else 0
    return many - left


def _move(problem: Problem, draft: Draft, domains: Mapping[str, str], source: int, most: int) -> int:
    """Up to `most` machines of one site to another domain's, where they cost least, if that is little enough; how many."""
    site = problem.sites[source]
    kind, before = site.new_class, _Load(list(draft.counts_at(source, site)), dict(draft.shares_at(source)))
    if kind is None or not (many := min(most, before.counts[kind])):
        return 0
    part = many / sum(before.counts)
    lines = {task.work.id: max(1, task.work.lines) for task in site.tasks}
    moved = {work_id: int(share * part) for work_id, share in before.shares.items()}
    # less than a line is no part of a work
    moved = {work_id: ppm if ppm * lines[work_id] >= PPM else 0 for work_id, ppm in moved.items()}
    less = _Load([*before.counts], {work_id: share - moved[work_id] for work_id, share in before.shares.items()})
    less.counts[kind] -= many
    if any(less.shares.values()) and not (any(less.counts) and is_on_time(site, less.counts, less.shares)):
        return 0
    here = domains[site.offer_key]
    limit = _cost(site, before) * MOST_EXTRA
    trials = []
    for index, other in enumerate(problem.sites):
        if other.pool != site.pool or index == source or domains.get(other.offer_key) == here:
            continue
        old = _Load(list(draft.counts_at(index, other)), dict(draft.shares_at(index)))
        new = _enlarged(problem, draft, other, old, moved)
        if new is not None:
            extra = _cost(site, less) + _cost(other, new) - _cost(site, before) - _cost(other, old)
            trials.append((extra, index, old, new))
    for extra, index, old, new in sorted(trials, key=lambda each: each[:2]):
        if extra > limit:
            return 0
        _put(draft, source, less)
        _put(draft, index, new)
        if not overspent(problem, draft):
            return many
        _put(draft, source, before)
        _put(draft, index, old)
    return 0


def _enlarged(problem: Problem, draft: Draft, site: Site, old: _Load, moved: Mapping[str, int]) -> _Load | None:
    """The site with these shares besides and as few new instances more as do them in time; None where that cannot be."""
    kind = site.new_class
    known = {task.work.id for task in site.tasks}
    if kind is None or any(ppm and work_id not in known for work_id, ppm in moved.items()):
        return None
    shares = {work_id: old.shares.get(work_id, 0) + moved.get(work_id, 0) for work_id in old.shares.keys() | moved}
    for more in range(1, rentable(problem, draft, site) + 1):
        counts = [count + more * (number == kind) for number, count in enumerate(old.counts)]
        if is_on_time(site, counts, shares):
            return _Load(counts, shares)
        if more > 2 * len(moved) + 64:  # the stair is not met by machines
            return None
    return None


def _put(draft: Draft, index: int, load: _Load) -> None:
    draft.counts[index], draft.shares[index] = list(load.counts), dict(load.shares)


def _cost(site: Site, load: _Load) -> int:
    return bill(site, load.counts, load.shares).total if any(load.shares.values()) else 0
