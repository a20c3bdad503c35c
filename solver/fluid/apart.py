"""A large queue's deadline work on spot is not all in one failure domain either (`spread`). Of each crowded pool its sites there,
and the few offers elsewhere where its work costs least, are a small exact problem beside all else that the plan has.

Only where all starts begin now, as in the broker's own snapshots: what one pool leaves to another later is nobody's to give.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from solver.eligibility import new_instances, survey_one
from solver.fluid.masks import Masks
from solver.problem import Draft, Problem, bills
from solver.schedule import Pool, Site
from solver.spread import crowded, relieve
from solver.types import OfferView
from solver.view import View

# Offers elsewhere that are looked at for a pool, the cheapest; and works on its crowded sites, each of which is held against
# them.
TARGETS, MOST_WORKS = 6, 200


class Apart:
    """Spreads a plan's pools over failure domains, in place of its problem and draft."""

    def __init__(self, view: View, masks: Masks, problem: Problem, draft: Draft, domains: Mapping[str, str]) -> None:
        self.problem, self.draft = problem, draft
        self._view, self._masks, self._domains = view, masks, domains
        self._sites = list(problem.sites)
        self._of_pool: dict[Pool, list[int]] = {}
        for index, site in enumerate(problem.sites):
            self._of_pool.setdefault(site.pool, []).append(index)
        works = masks.figures.works
        self._class = {works[each].id: k for k, members in enumerate(masks.classes.members) for each in members}

    def spread(self) -> tuple[Problem, Draft]:
        for pool in sorted(self._of_pool):
            found = crowded(self.problem, self.draft, self._of_pool[pool], self._domains)
            if found is not None:
                self._relieve(pool, *found)
        return self.problem, self.draft

    def _relieve(self, pool: Pool, there: list[int], many: int) -> None:
        tasks = [task for index in there for task in self._sites[index].tasks]
        work_ids = {task.work.id for task in tasks}
        if len(work_ids) > MOST_WORKS:
            return
        here = self._domains[self._sites[there[0]].offer_key]
        targets = [
            site for offer in self._elsewhere(work_ids, here) if (site := self._target(offer, pool, there)) is not None
        ]
        at = {self._sites[index].offer_key: index for index in self._of_pool[pool]}
        index_of = [*there, *(at.get(site.offer_key) for site in targets)]
        part, small = self._part([*(self._sites[each] for each in there), *targets], index_of)
        if not relieve(part, small, self._domains, list(range(len(there))), many):
            return
        for number, (site, index) in enumerate(zip(part.sites, index_of, strict=True)):
            shares = {work_id: ppm for work_id, ppm in small.shares_at(number).items() if ppm}
            if index is None:
                if not shares:
                    continue
                self._of_pool[pool].append(len(self._sites))
                self._sites.append(site)
            at_index = self._of_pool[pool][-1] if index is None else index
            used = tuple(task for task in site.tasks if task.work.id in shares)
            self._sites[at_index] = replace(site, tasks=used)
            self.draft.counts[at_index], self.draft.shares[at_index] = list(small.counts_at(number, site)), shares
        self.problem = replace(self.problem, sites=tuple(self._sites))

    def _elsewhere(self, work_ids: set[str], here: str) -> list[OfferView]:
        """The offers outside a domain that are open to all of these works, by what they cost there alone."""
        offers = self._masks.figures.offers
        classes = sorted({self._class[work_id] for work_id in work_ids})
        is_open = np.logical_and.reduce([self._masks.open_to(k)[: len(offers)] for k in classes])
        price = np.where(is_open, self._masks.alone_cost(classes[0])[: len(offers)], np.inf)
        found: list[OfferView] = []
        for number in np.lexsort((np.arange(len(offers)), price)).tolist():
            if not np.isfinite(price[number]) or len(found) == TARGETS:
                break
            if self._domains.get(offers[number].key) != here and self._left(offers[number]) > 0:
                found.append(offers[number])
        return found

    def _target(self, offer: OfferView, pool: Pool, there: list[int]) -> Site | None:
        """The offer's site of the pool, open to all works of the crowded ones; None where it is not."""
        works = {task.work.id: task.work for index in there for task in self._sites[index].tasks}
        verdicts = [survey_one(work, offer, self._view) for _, work in sorted(works.items())]
        if not all(any(each.is_new for each in verdict.classes) for verdict in verdicts):
            return None
        found = [each for each in self._of_pool[pool] if self._sites[each].offer_key == offer.key]
        had = self._sites[found[0]] if found else None
        tasks = {task.work.id: task for task in (had.tasks if had else ())}
        tasks |= {verdict.task.work.id: verdict.task for verdict in verdicts if verdict.task}
        classes = had.classes if had else ()
        if not any(each.is_new for each in classes):
            classes = (*classes, new_instances(offer, pool.model, self._view.snapshot))
        ordered = tuple(sorted(tasks.values(), key=lambda task: task.turn))
        return Site(offer.key, offer.quota_group, pool, classes, ordered, offer.quota_units)

    def _left(self, offer: OfferView) -> int:
        """Instances that the plan leaves of an offer, its quota aside."""
        used = sum(self._new(index) for index, site in enumerate(self._sites) if site.offer_key == offer.key)
        return (1 if offer.capacity is None else offer.capacity) - used

    def _new(self, index: int) -> int:
        """New instances at a site."""
        site = self._sites[index]
        counts = self.draft.counts_at(index, site)
        return sum(count for count, each in zip(counts, site.classes, strict=False) if each.is_new)

    def _part(self, sites: list[Site], index_of: list[int | None]) -> tuple[Problem, Draft]:
        """The problem of these sites beside all others: what those use of capacity, quotas and money is taken off."""
        own = {index for index in index_of if index is not None}
        capacity, units = Counter[str](), Counter[str]()
        for index, site in enumerate(self._sites):
            if index not in own:
                capacity[site.offer_key] += self._new(index)
                units[site.quota] += self._new(index) * site.units
        view, project = self._view, sites[0].pool.project
        works = {task.work.id: task.work for site in sites for task in site.tasks}
        spent, committed = self._spent(own, project)
        part = Problem(
            works=tuple(works[each] for each in sorted(works)),
            sites=tuple(sites),
            capacity={
                site.offer_key: (1 if (most := view.offers[site.offer_key].capacity) is None else max(0, most))
                - capacity[site.offer_key]
                for site in sites
            },
            quota={name: max(0, most) - units[name] for name, most in view.quotas.items()},
            limits={each: self.problem.limits[each] - spent[each] for each in works if each in self.problem.limits},
            budgets={project: view.budgets[project] - committed} if project in view.budgets else {},
        )
        small = Draft()
        for number, (site, place) in enumerate(zip(sites, index_of, strict=True)):
            counts = self.draft.counts_at(place, self._sites[place]) if place is not None else []
            small.counts[number] = [*counts, *[0] * (len(site.classes) - len(counts))]
            small.shares[number] = dict(self.draft.shares_at(place)) if place is not None else {}
        return part, small

    def _spent(self, own: set[int], project: str) -> tuple[Counter[str], int]:
        """Nano-USD of each work at the project's other sites, and what these commit of its budget."""
        if not self.problem.limits and project not in self._view.budgets:
            return Counter(), 0
        others = {
            index: shares
            for index, shares in self.draft.shares.items()
            if index not in own and self._sites[index].pool.project == project
        }
        spent, committed = Counter[str](), 0
        for index, each in bills(self.problem, Draft(dict(self.draft.counts), others)).items():
            spent.update(each.allotted)
            committed += sum(
                nano for nano, kind in zip(each.class_cost, self._sites[index].classes, strict=True) if kind.is_new
            )
        return spent, committed
