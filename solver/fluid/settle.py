"""From parts of classes to works, in integers: the exact draft of a plan.

The works of a class are cut, earliest deadline first, into the places that the class has; at most one work between two places is
split. Then every offer is packed anew in whole microseconds, and what rounding made not fit is placed once more or left out.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache, partial

from solver.data_costs import moving_nano, once_nano
from solver.durations import PPM
from solver.fluid.figures import OPEN
from solver.fluid.packing import Block, Item, Packing, Placed, block_of, pack
from solver.fluid.restore import Restoration
from solver.fluid.yard import Yard
from solver.problem import Draft, Problem, bills
from solver.schedule import Instances, Pool, Site, Task, ceil_div
from solver.types import OfferView, Work
from solver.view import View

# Rounds of leaving out what costs too much.
ROUNDS = 200
# Packings looked at for works that are left over, together: a market that is sold out has no place for any of thousands.
TRIES = 20_000
# A piece of a work that is less than both, in millionths of the work and in microseconds, is no piece of its own.
LEAST_PPM, LEAST_US = 200, 60_000_000
# What a place may take beyond its room to hold the whole rest of a work, in the same units: the lesser counts.
OVER_PPM, OVER_US = 50, 1_000_000


@dataclass(slots=True)
class Exact:
    """Millionths of works per (offer, block), and how each offer is packed with them. Indices are of offers, blocks (as in a
    `Berth`) and works."""

    view: View
    yard: Yard
    shares: dict[int, dict[int, dict[int, int]]] = field(default_factory=dict)
    packings: dict[int, Packing] = field(default_factory=dict)
    _tasks: dict[tuple[int, int], Task] = field(default_factory=dict)

    def offer(self, number: int) -> OfferView:
        return self.yard.pricing.figures.offers[number]

    def work(self, number: int) -> Work:
        return self.yard.pricing.figures.works[number]

    def task(self, offer: int, work: int) -> Task:
        key = (offer, work)
        if key not in self._tasks:
            busy = self.view.busy(self.work(work), self.offer(offer))
            if busy is None:
                raise ValueError(
                    f"work {self.work(work).id} was placed on {self.offer(offer).key}, where nobody knows its speed"
                )
            data_nano = moving_nano(self.work(work), self.offer(offer))
            self._tasks[key] = Task(self.work(work), self.view.due_us(self.work(work)), *busy, data_nano)
        return self._tasks[key]

    def blocks(self, offer: int, shares: dict[int, dict[int, int]]) -> list[Block]:
        found = []
        for pool, parts in shares.items():
            if not parts:
                continue
            tasks = sorted(
                ((self.task(offer, work), part, work) for work, part in parts.items()), key=lambda each: each[0].turn
            )
            items = tuple(
                Item(task.due_us, ceil_div(part * task.cautious_us, PPM), ceil_div(part * task.expected_us, PPM), work)
                for task, part, work in tasks
            )
            name = self.yard.pricing.figures.pools[self.yard.pool_of(pool)]
            start_us = self.offer(offer).timings_of(name.model).total_s * 1_000_000
            warm = self.yard.warm_of(offer, pool)
            ready = tuple(round(each * 3600) * 1_000_000 for each in warm.ready) if warm else ()
            found.append(block_of(pool, start_us, items, ready))
        return found

    def pack(self, offer: int, shares: dict[int, dict[int, int]]) -> Packing:
        figures = self.yard.pricing.figures
        capacity = int(figures.resources.count[offer]) if figures.renting[offer] == OPEN else 0
        # exact loads may ask for an instance more than the search found: a quota has the last word
        capacity = max(0, min(capacity, self._quota_beside(offer)))
        blocks = self.blocks(offer, shares)
        return pack(capacity, blocks, is_later=self.view.snapshot.later_starts) if blocks else Packing({}, True, 0)

    def settle(self, offer: int) -> dict[int, int]:
        """Pack an offer; what does not fit is taken off its shares and returned, by work."""
        short: dict[int, int] = {}
        while True:
            packing = self.pack(offer, self.shares.get(offer, {}))
            if packing.is_whole:
                self.packings[offer] = packing
                return short
            for pool, placed in packing.placed.items():
                for work, ppm in self._short(offer, placed).items():
                    had = self.shares[offer][pool].pop(work)
                    short[work] = short.get(work, 0) + min(ppm, had)
                    if had > ppm:
                        self.shares[offer][pool][work] = had - ppm

    def _short(self, offer: int, placed: Placed) -> dict[int, int]:
        """Millionths of each work that were not accepted, and one more for rounding."""
        found = {}
        for item, accepted in zip(placed.items, placed.accepted, strict=True):
            if accepted < item.load:
                found[item.key] = (
                    ceil_div(round(item.load - accepted) * PPM, self.task(offer, item.key).cautious_us) + 1
                )
        return found

    def try_more(self, offer: int, pool: int, work: int, ppm: int) -> int:
        """Give a work up to this much more at an offer, as far as that fits beside what is there; how much that was."""
        mine = self.block_of(offer, work)
        blocks = [mine] if mine is not None else self._blocks_of(offer, pool)
        return next((more for block in blocks if (more := self._try_in(offer, block, work, ppm))), 0)

    def block_of(self, offer: int, work: int) -> int | None:
        """The block that a work is in at an offer."""
        return next((block for block, parts in self.shares.get(offer, {}).items() if parts.get(work)), None)

    def _blocks_of(self, offer: int, pool: int) -> list[int]:
        """The blocks of a pool at an offer, its first one where it has none."""
        found = [
            block for block, parts in self.shares.get(offer, {}).items() if parts and self.yard.pool_of(block) == pool
        ]
        return sorted(found) or [pool]

    def _try_in(self, offer: int, block: int, work: int, ppm: int) -> int:
        had = self.shares.get(offer, {}).get(block, {}).get(work, 0)
        more = ppm
        for _ in range(2):
            shares = {each: dict(parts) for each, parts in self.shares.get(offer, {}).items()}
            shares.setdefault(block, {})[work] = had + more
            packing = self.pack(offer, shares)
            if packing.is_whole:
                self.shares[offer], self.packings[offer] = shares, packing
                return more
            short = {
                each: less for placed in packing.placed.values() for each, less in self._short(offer, placed).items()
            }
            more -= short.get(work, 0)
            if set(short) != {work} or more < self.least_ppm(offer, work):
                return 0
        return 0

    def least_ppm(self, offer: int, work: int) -> int:
        """The least millionths of a work that are a piece of their own."""
        return min(LEAST_PPM, LEAST_US * PPM // self.task(offer, work).cautious_us + 1)

    def _quota_beside(self, offer: int) -> int:
        """Instances that an offer's quota leaves for it beside the others that count against it."""
        group, units = self.offer(offer).quota_group, self.offer(offer).quota_units
        quota = self.view.quotas.get(group)
        if quota is None:
            return 1_000_000
        used = sum(
            packing.instances * self.offer(each).quota_units
            for each, packing in self.packings.items()
            if each != offer and self.offer(each).quota_group == group
        )
        return (quota - used) // units

    def drop(self, work: int) -> None:
        """Take a work away from everywhere. Packed anew, the rest may fit less well: then that, too, loses its place."""
        for offer, pools in self.shares.items():
            if any(parts.pop(work, 0) for parts in pools.values()):
                self.settle(offer)

    def draft(self) -> tuple[Problem, Draft]:
        """The sites that have load, as the rest of the solver knows them."""
        sites: list[Site] = []
        draft = Draft()
        for offer in sorted(self.packings):
            for pool, placed in sorted(self.packings[offer].placed.items()):
                parts = self.shares[offer].get(pool)
                if not parts:
                    continue
                site, counts = self._site(offer, pool, placed, parts)
                draft.counts[len(sites)] = counts
                draft.shares[len(sites)] = {self.work(work).id: ppm for work, ppm in parts.items()}
                sites.append(site)
        return self.problem(tuple(sites)), draft

    def problem(self, sites: tuple[Site, ...]) -> Problem:
        snapshot = self.view.snapshot
        return Problem(
            works=snapshot.works,
            sites=sites,
            capacity={},
            quota={},
            limits={
                work.id: work.max_nano - work.progress.spent_nano
                for work in snapshot.works
                if work.max_nano is not None
            },
            budgets=dict(self.view.budgets),
        )

    def _site(self, offer: int, pool: int, placed: Placed, parts: dict[int, int]) -> tuple[Site, list[int]]:
        name: Pool = self.yard.pricing.figures.pools[self.yard.pool_of(pool)]
        listed = self.offer(offer)
        classes: list[Instances] = []
        counts: list[int] = []
        warm = self.yard.warm_of(offer, pool)
        if warm:
            for ready, price, rental in list(zip(warm.ready, warm.price, warm.rentals, strict=True))[: placed.warm]:
                classes.append(Instances(round(ready * 3600) * 1_000_000, round(price * 1e9), 0, 1, (rental,)))
                counts.append(1)
        start_us = listed.timings_of(name.model).total_s * 1_000_000
        for begin in sorted(set(placed.begins)):
            classes.append(
                Instances(
                    ready_us=int(begin) + start_us,
                    price_nano_hour=listed.price_nano_hour or 0,
                    minimum_s=listed.minimum_s,
                    granularity_s=listed.granularity_s,
                    from_us=int(begin),
                    once_nano=once_nano(listed, name.model, self.view.snapshot.fetched_bytes),
                )
            )
            counts.append(placed.begins.count(begin))
        tasks = tuple(sorted((self.task(offer, work) for work in parts), key=lambda task: task.turn))
        site = Site(
            listed.key,
            listed.quota_group,
            name,
            tuple(classes),
            tasks,
            listed.quota_units,
            turn=pool // self.yard.pools,
        )
        return site, counts


def settle(view: View, restoration: Restoration) -> Exact:
    """Works in the places of their classes, exactly on time and within all money limits."""
    exact = Exact(view, restoration.yard)
    short = _cut(exact, restoration)
    for offer in sorted(exact.shares):
        for work, ppm in exact.settle(offer).items():
            short[work] = short.get(work, 0) + ppm
    _again(exact, restoration, short)
    _within_money(exact)
    return exact


def _cut(exact: Exact, restoration: Restoration) -> dict[int, int]:
    """Give each work its shares; what is left over of a work, because places are cut in whole hours, is returned."""
    yard, classes = restoration.yard, restoration.pricing.classes
    places: dict[int, list[tuple[float, int, int, float]]] = {}
    for offer, berth in sorted(yard.berths.items()):
        for pool, parts in berth.loads.items():
            until = berth.packing.placed[pool].until
            for k, part in parts.items():
                places.setdefault(k, []).append((until, offer, pool, part))
    short: dict[int, int] = {}
    for k, those in sorted(places.items()):
        works = exact.view.snapshot.works
        order = sorted(
            classes.members[k], key=lambda each: (works[each].deadline_us, -works[each].priority, works[each].id)
        )
        pool, is_all = int(classes.pool[k]), sum(part for _, _, _, part in those) > 1 - 1e-6
        short.update(_cut_class(exact, pool, order, sorted(those), is_all))
    return short


def _cut_class(
    exact: Exact, pool: int, works: list[int], places: list[tuple[float, int, int, float]], is_all: bool
) -> dict[int, int]:
    if is_all and len(places) == 1:  # most classes: there is nothing to cut
        _, offer, block, _ = places[0]
        exact.shares.setdefault(offer, {}).setdefault(block, {}).update(dict.fromkeys(works, PPM))
        return {}
    queue = list(works)
    left = dict.fromkeys(works, PPM)
    short: dict[int, int] = {}
    whole: dict[tuple[int, float], int] = {}
    figures = exact.yard.pricing.figures
    kind = int(figures.kind_of_pool[pool])
    for number, (_, offer, block, part) in enumerate(places):
        speed = (int(figures.accelerator[offer]), float(figures.slow[kind, offer]))
        if speed not in whole:
            whole[speed] = sum(exact.task(offer, work).cautious_us for work in works)
        room = part * whole[speed]
        is_last = is_all and number == len(places) - 1
        parts = exact.shares.setdefault(offer, {}).setdefault(block, {})
        while queue:
            work = queue[0]
            cautious = exact.task(offer, work).cautious_us
            over = min(OVER_PPM, OVER_US * PPM // cautious + 1)
            ppm = left[work] if is_last else min(left[work], int(room / cautious * PPM + over))
            if ppm < min(exact.least_ppm(offer, work), left[work]):
                break
            parts[work] = parts.get(work, 0) + ppm
            left[work] -= ppm
            room -= ppm * cautious / PPM
            if left[work]:
                break
            queue.pop(0)
    for work in queue:
        if left[work]:
            short[work] = left[work]
    return short


def _again(exact: Exact, restoration: Restoration, short: dict[int, int]) -> None:
    """Place once more what was left over: where the work is already, else where it costs least."""
    classes, many = restoration.pricing.classes, len(restoration.pricing.figures.resources)
    tries = TRIES
    refused: dict[int, set[int]] = {}
    of_class = {work: k for k, members in enumerate(classes.members) for work in members if work in short}
    has = _offers_of(exact, short)
    cheapest = cache(lambda k: restoration.cheapest_first(k, many)[0])
    for work, ppm in sorted(short.items(), key=lambda each: (-exact.work(each[0]).priority, each[0])):
        k, left = of_class[work], ppm
        full = refused.setdefault(k, set())
        for offer in _in_turn(has.get(work, []), partial(cheapest, k), full) if left and tries else ():
            tries -= 1
            more = exact.try_more(offer, int(classes.pool[k]), work, left)
            left -= more
            if not more:  # nor has it room for the next of the class
                full.add(offer)
            if not left or not tries:
                break


def _in_turn(mine: list[int], others: Callable[[], Sequence[int]], full: set[int]) -> Iterator[int]:
    """Where a work is, then the others, which are asked for only when it comes to that."""
    yield from mine
    yield from (offer for offer in others() if offer not in full and offer not in mine)


def _offers_of(exact: Exact, works: Collection[int]) -> dict[int, list[int]]:
    """Where each of these works is; to look for each at all offers was a tenth of a first plan of 100,000 works."""
    found: dict[int, list[int]] = {}
    for offer, blocks in exact.shares.items():
        here = {work for parts in blocks.values() for work, ppm in parts.items() if ppm and work in works}
        for work in here:
            found.setdefault(work, []).append(offer)
    return found


def _within_money(exact: Exact) -> None:
    """Leave out works that cost more than they may, or that a budget cannot pay whole, the least urgent first."""
    view = exact.view
    if not view.budgets and all(work.max_nano is None for work in view.snapshot.works):
        return
    number = {work.id: index for index, work in enumerate(view.snapshot.works)}
    for _ in range(ROUNDS):
        out = _unaffordable(exact)
        if not out:
            return
        for work_id in sorted(out):
            exact.drop(number[work_id])
    for work in view.snapshot.works:  # it never came to rest: what has a limit is not begun on a guess
        if work.max_nano is not None or work.project in view.budgets:
            exact.drop(number[work.id])


def _unaffordable(exact: Exact) -> set[str]:
    """Works over their limit, those that a budget pays only a part of, and the least urgent of projects over their budget."""
    works = exact.view.snapshot.works
    problem, draft = exact.draft()
    cost: dict[str, int] = {}
    spent: dict[str, int] = {}
    for index, each in bills(problem, draft).items():
        site = problem.sites[index]
        for work_id, nano in each.allotted.items():
            cost[work_id] = cost.get(work_id, 0) + nano
        new = [nano for nano, those in zip(each.class_cost, site.classes, strict=True) if those.is_new]
        spent[site.pool.project] = spent.get(site.pool.project, 0) + sum(new)
    served = draft.served_all()
    out = {work_id for work_id, nano in cost.items() if nano > problem.limits.get(work_id, nano)}
    out |= {work.id for work in works if 0 < served.get(work.id, 0) < PPM and problem.is_all_or_nothing(work)}
    for project, nano in spent.items():
        over = nano - problem.budgets.get(project, nano)
        spending = [work for work in works if work.project == project and cost.get(work.id)]
        for work in sorted(spending, key=lambda each: (each.priority, -each.deadline_us, each.id)):
            if over > 0:
                out.add(work.id)
                over -= cost[work.id]
    return out
