"""The problem that the program and the greedy fallback both solve: sites, tasks and limits; and its solution, the draft."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from solver.durations import PPM
from solver.eligibility import Verdict
from solver.schedule import Bill, Instances, Pool, Site, Task, bill
from solver.types import Work
from solver.view import View, pool_of


@dataclass(frozen=True, slots=True)
class Problem:
    """Works that have at least one eligible offer, and the sites where they may run.

    `capacity` per offer (instances) and `quota` by its name (units) limit new instances; `limits` per work and `budgets` per
    project are nano-USD that may still be spent (running rentals count against the former only: the latter has holds for them
    subtracted already). `groups`: by work that is one of several twins (`variants`), the work that they are twins of; one twin of
    each group is served.
    """

    works: tuple[Work, ...]
    sites: tuple[Site, ...]
    capacity: Mapping[str, int]
    quota: Mapping[str, int]
    limits: Mapping[str, int]
    budgets: Mapping[str, int]
    groups: Mapping[str, str] = field(default_factory=dict)

    def twins(self) -> dict[str, list[Work]]:
        """The works of each group that has more than one in this problem."""
        found: dict[str, list[Work]] = {}
        for work in self.works:
            if work.id in self.groups:
                found.setdefault(self.groups[work.id], []).append(work)
        return {base: those for base, those in found.items() if len(those) > 1}

    def is_all_or_nothing(self, work: Work) -> bool:
        """Work that has not begun is not begun on a budget that pays only a part of it."""
        return work.progress.lines_done == 0 and work.project in self.budgets


@dataclass(slots=True)
class Draft:
    """A solution in integers: instances per class of each site, and millionths of each work per site."""

    counts: dict[int, list[int]] = field(default_factory=dict)
    shares: dict[int, dict[str, int]] = field(default_factory=dict)

    def counts_at(self, index: int, site: Site) -> list[int]:
        return self.counts.setdefault(index, [0] * len(site.classes))

    def shares_at(self, index: int) -> dict[str, int]:
        return self.shares.setdefault(index, {})

    def served(self, work_id: str) -> int:
        """Millionths of the work that have a place."""
        return sum(shares.get(work_id, 0) for shares in self.shares.values())

    def served_all(self) -> dict[str, int]:
        """`served` of every work that has any place."""
        found: dict[str, int] = {}
        for shares in self.shares.values():
            for work_id, ppm in shares.items():
                found[work_id] = found.get(work_id, 0) + ppm
        return found


def state(view: View, surveys: Mapping[str, tuple[Verdict, ...]]) -> Problem:
    """The problem of a snapshot, from the verdicts of each work."""
    tasks: dict[tuple[str, Pool], list[Task]] = {}
    classes: dict[tuple[str, Pool], set[Instances]] = {}
    served = []
    for work in view.snapshot.works:
        open_verdicts = [verdict for verdict in surveys[work.id] if verdict.is_eligible and verdict.task]
        if open_verdicts:
            served.append(work)
        for verdict in open_verdicts:
            key = (verdict.offer.key, pool_of(work))
            if verdict.task:
                tasks.setdefault(key, []).append(verdict.task)
            classes.setdefault(key, set()).update(verdict.classes)
    sites = tuple(
        Site(
            offer_key=offer_key,
            quota=view.offers[offer_key].quota_group,
            units=view.offers[offer_key].quota_units,
            pool=pool,
            classes=tuple(
                sorted(classes[offer_key, pool], key=lambda each: (each.is_new, each.ready_us, each.price_nano_hour))
            ),
            tasks=tuple(sorted(tasks[offer_key, pool], key=lambda task: task.turn)),
        )
        for offer_key, pool in sorted(tasks)
    )
    return Problem(
        works=tuple(served),
        sites=sites,
        capacity={offer.key: 1 if offer.capacity is None else max(0, offer.capacity) for offer in view.snapshot.offers},
        quota={name: max(0, remaining) for name, remaining in view.quotas.items()},
        limits={work.id: work.max_nano - work.progress.spent_nano for work in served if work.max_nano is not None},
        budgets=dict(view.budgets.items()),
    )


def turns_of(works: Iterable[Work]) -> dict[str, int]:
    """By work, how many of its project and priority are due before it: serving in these turns is fair to projects, however much
    each of them has waiting.
    """
    turns: dict[str, int] = {}
    before: Counter[tuple[str, int]] = Counter()
    for work in sorted(works, key=lambda each: (each.deadline_us, each.id)):
        turns[work.id] = before[work.project, work.priority]
        before[work.project, work.priority] += 1
    return turns


def bills(problem: Problem, draft: Draft) -> dict[int, Bill]:
    """The bill of every site that has load."""
    return {
        index: bill(problem.sites[index], draft.counts_at(index, problem.sites[index]), shares)
        for index, shares in sorted(draft.shares.items())
        if any(shares.values())
    }


def overspent(problem: Problem, draft: Draft) -> frozenset[tuple[str, str]]:
    """("work", id) and ("project", name) whose exact cost is over what they may still spend."""
    by_work: dict[str, int] = {}
    by_project: dict[str, int] = {}
    for index, each in bills(problem, draft).items():
        site = problem.sites[index]
        for work_id, nano in each.allotted.items():
            by_work[work_id] = by_work.get(work_id, 0) + nano
        if site.new_class is not None:
            by_project[site.pool.project] = by_project.get(site.pool.project, 0) + each.class_cost[site.new_class]
    over = {("work", key) for key, nano in by_work.items() if nano > problem.limits.get(key, nano)}
    return frozenset(
        over | {("project", key) for key, nano in by_project.items() if nano > problem.budgets.get(key, nano)}
    )


def unserved(problem: Problem, draft: Draft) -> dict[str, int]:
    """Millionths of each work that have no place, works that are wholly served left out."""
    left = {work.id: PPM - draft.served(work.id) for work in problem.works}
    return {work_id: ppm for work_id, ppm in left.items() if ppm}
