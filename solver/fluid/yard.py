"""Where every part of every class is, offer by offer, with what it really costs: the state that restoration works on."""

from __future__ import annotations

import math
from bisect import bisect_right, insort
from dataclasses import dataclass, field

import numpy as np

from solver.fluid.figures import OPEN
from solver.fluid.packing import Block, Item, Packing, Placed, block_of, finish, pack, pack_with
from solver.fluid.prices import Pricing

# Of the time before a deadline this part, and these hours, stay free: what exact shares of works add to rounded ones.
MARGIN, MARGIN_H = 2e-4, 2 / 3600
# What is held was exact once: with those margins a half of one percent of it did not fit where it was.
HELD_MARGIN = (1e-7, 0.05 / 3600)
# A part of a class below this is a crumb.
CRUMB = 1e-7
# Instance hours below which a part of a class is not worth a place of its own, or this part of the time to its deadline where
# that is less: as a share of the class, a class of more than fifty places found none.
LEAST_H, LEAST_OF_DUE = 0.5, 0.1
# Where a later start is possible, work of one pool that is due between two of these hours begins as a block of its own, and a
# pool has at most so many blocks at an offer: early and late work would take the hours between from others. One block each cost
# 1.6 % more at 2,000 works and 1,000 offers; three hours (4, 10, 24) or seven instead of these two nothing less.
TURNS, MOST_TURNS = (6.0, 20.0), 3


def least_hours(due: float) -> float:
    """Instance hours due in so many hours that are worth a place of their own."""
    return min(LEAST_H, LEAST_OF_DUE * due)


# By block the parts of classes, and by class and offer the turn.
Loads = dict[int, dict[int, float]]
Turns = dict[tuple[int, int], int]


@dataclass(frozen=True, slots=True)
class Berth:
    """One offer's state: parts of classes by block, how they are packed, and the cost in USD by block.

    A block is numbered `pool + turn · pools` (`Yard.pool_of`): a pool may come back to an offer in another turn.
    """

    loads: Loads
    packing: Packing
    costs: dict[int, float]
    blocks: dict[int, Block]
    cost: float

    @staticmethod
    def empty() -> Berth:
        return Berth({}, Packing({}, True, 0), {}, {}, 0.0)


EMPTY = Berth.empty()


@dataclass(slots=True)
class Warm:
    """Running rentals of a pool at an offer, soonest ready first, then cheapest."""

    ready: tuple[float, ...]
    price: tuple[float, ...]
    rentals: tuple[str, ...]


@dataclass(slots=True)
class Yard:
    """All berths. `put` replaces one and keeps the books of quotas and budgets; `undo` takes back what was put since a mark.

    `turns` are those of classes at offers in a plan that is held, `most_turns` how many blocks a pool may have at an offer,
    `is_held` whether it begins with a plan that was exact.
    """

    pricing: Pricing
    berths: dict[int, Berth] = field(default_factory=dict)
    of_quota: dict[str, int] = field(default_factory=dict)
    of_project: dict[str, float] = field(default_factory=dict)
    warm: dict[tuple[int, int], Warm] = field(default_factory=dict)
    log: list[tuple[int, Berth]] = field(default_factory=list)
    _of_pool: dict[int, set[int]] = field(default_factory=dict)
    _bases: dict[int, tuple[list[float], list[float]]] = field(default_factory=dict)
    _accelerator: list[int] = field(default_factory=list)
    _slow: list[list[float]] = field(default_factory=list)
    _kind: list[int] = field(default_factory=list)
    _due: list[float] = field(default_factory=list)
    _terms: list[tuple[float, float, float]] = field(default_factory=list)
    turns: Turns = field(default_factory=dict)
    most_turns: int = MOST_TURNS
    is_held: bool = False
    is_later: bool = False
    pools: int = 1

    def __post_init__(self) -> None:
        figures, classes = self.pricing.figures, self.pricing.classes
        self.is_later, self.pools = figures.view.snapshot.later_starts, len(figures.pools)
        if not self.is_later:
            self.most_turns = 1
        self._accelerator, self._slow = figures.accelerator.tolist(), figures.slow.tolist()
        self._kind = classes.kind.tolist()
        share, hours = HELD_MARGIN if self.is_held else (MARGIN, MARGIN_H)
        self._due = (classes.due * (1 - share) - hours).tolist()
        # USD an hour, and hours that are billed at least and in steps
        self._terms = [
            (price, each.minimum_s / 3600, each.granularity_s / 3600)
            for each, price in zip(figures.offers, figures.resources.price.tolist(), strict=False)
        ]
        resources = figures.resources
        groups: dict[tuple[int, int], list[tuple[float, float, str]]] = {}
        for r in range(len(self.pricing.figures.offers), len(resources)):
            those = groups.setdefault((int(resources.offer[r]), int(resources.pool[r])), [])
            those.extend((float(resources.ready[r]), float(resources.price[r]), each) for each in resources.rentals[r])
        for key, those in groups.items():
            those.sort()
            self.warm[key] = Warm(
                tuple(each[0] for each in those), tuple(each[1] for each in those), tuple(each[2] for each in those)
            )
            self._of_pool.setdefault(key[1], set()).add(key[0])

    def started(self, pool: int) -> set[int]:
        """Offers where the pool has a block or running rentals. Not to be changed."""
        return self._of_pool.setdefault(pool, set())

    def pool_of(self, block: int) -> int:
        return block % self.pools

    def warm_of(self, offer: int, block: int) -> Warm | None:
        """Running rentals belong to a pool's first turn."""
        return self.warm.get((offer, block)) if block < self.pools else None

    def turn(self, k: int, offer: int) -> int:
        """The block of a class at an offer that has none of its pool yet."""
        pool = int(self.pricing.classes.pool[k])
        if (k, offer) in self.turns:
            return pool + self.pools * self.turns[k, offer]
        if (offer, pool) in self.warm:
            return pool
        return pool + self.pools * min(bisect_right(TURNS, self._due[k]), self.most_turns - 1)

    def choices(self, offer: int, k: int) -> list[int]:
        """Blocks at the offer that a class may join, its own alone where it has one; those due about when it is first, then one
        of its own."""
        pool, due, berth = int(self.pricing.classes.pool[k]), self._due[k], self.berth(offer)
        found = []
        for block, parts in berth.loads.items():
            if block % self.pools == pool:
                if k in parts:
                    return [block]
                items = berth.blocks[block].items
                found.append((max(items[0].due / due, due / items[-1].due), block))
        if not found:
            return [pool]
        found.sort()
        blocks = [block for _, block in found]
        if len(blocks) < self.most_turns:
            blocks.append(
                next(each for each in range(pool, pool + 9 * self.pools, self.pools) if each not in berth.loads)
            )
        return blocks

    def hours(self, k: int, offer: int) -> tuple[float, float]:
        """(expected, cautious) instance hours of the whole class at an offer."""
        expected, long = self._bases.get(k) or self._base(k)
        accelerator, slow = self._accelerator[offer], self._slow[self._kind[k]][offer]
        return expected[accelerator] * slow, long[accelerator] * slow

    def _base(self, k: int) -> tuple[list[float], list[float]]:
        """Useful hours of the whole class by accelerator."""
        figures, classes = self.pricing.figures, self.pricing.classes
        kind = int(classes.kind[k])
        is_known = np.isfinite(figures.per_input[kind])
        base = classes.tokens_in[k] * np.where(is_known, figures.per_input[kind], 0.0)
        out = np.where(is_known, figures.per_output[kind], 0.0)
        expected = (base + classes.tokens_out[k] * out).tolist()
        is_same = classes.tokens_long[k] == classes.tokens_out[k] and not figures.is_cautious[kind]
        long = (base + classes.tokens_long[k] * out) * figures.caution[kind]
        self._bases[k] = (expected, expected if is_same else long.tolist())
        return self._bases[k]

    def berth(self, offer: int) -> Berth:
        return self.berths.get(offer, EMPTY)

    def weigh(self, offer: int, loads: Loads) -> Berth:
        """What the loads would be packed and cost like at the offer."""
        before = self.berth(offer)
        blocks = self._blocks(offer, loads, before)
        if not blocks:
            return EMPTY
        packing = pack(self._capacity(offer), list(blocks.values()), is_later=self.is_later, before=before.packing)
        return self._berth(offer, loads, blocks, packing)

    def weigh_with(self, offer: int, k: int, part: float, pool: int) -> Berth | None:
        """As `weigh` with a part of a class more in a block, if all others are accepted whole; else None."""
        before = self.berth(offer)
        block = self._block_with(offer, k, part, pool)
        packing = pack_with(self._capacity(offer), before.packing, block, is_later=self.is_later)
        if packing is None:
            return None
        blocks = dict(before.blocks)
        blocks[pool] = block
        if not packing.is_whole:  # it only tells how much of it fits
            return Berth({}, packing, {}, blocks, math.inf)
        return self._berth(offer, self.with_part(offer, k, part, pool), blocks, packing)

    def _capacity(self, offer: int) -> int:
        figures = self.pricing.figures
        return int(figures.resources.count[offer]) if figures.renting[offer] == OPEN else 0

    def _blocks(self, offer: int, loads: Loads, before: Berth) -> dict[int, Block]:
        """Blocks by pool; those of loads that are there already are not made again."""
        found = {}
        for pool, parts in loads.items():
            if parts:
                is_same = before.loads.get(pool) is parts
                found[pool] = before.blocks[pool] if is_same else self._block(offer, pool, parts)
        return found

    def _berth(self, offer: int, loads: Loads, blocks: dict[int, Block], packing: Packing) -> Berth:
        before = self.berth(offer)
        costs = {}
        for pool, block in blocks.items():
            is_same = packing.placed[pool] is before.packing.placed.get(pool)
            costs[pool] = before.costs[pool] if is_same else self._cost(offer, block, packing)
            if not is_same and self.pricing.besides.is_any:
                costs[pool] += self._besides(offer, block, loads[pool], packing)
        return Berth(loads, packing, costs, blocks, sum(costs.values()))

    def _block(self, offer: int, pool: int, parts: dict[int, float]) -> Block:
        items = []
        due, hours = self._due, self.hours
        for k, part in parts.items():
            expected, long = hours(k, offer)
            items.append(Item(due[k], part * long, part * expected, k))
        items.sort()
        return self._block_of(offer, pool, tuple(items))

    def _block_with(self, offer: int, k: int, part: float, pool: int) -> Block:
        """The block with a part of a class more; what it has of others is not made again."""
        berth = self.berth(offer)
        expected, long = self.hours(k, offer)
        if pool not in berth.blocks:
            return self._block_of(offer, pool, (Item(self._due[k], part * long, part * expected, k),))
        had, block = berth.loads[pool].get(k), berth.blocks[pool]
        items = list(block.items) if had is None else [item for item in block.items if item.key != k]
        part = (had or 0.0) + part
        insort(items, Item(self._due[k], part * long, part * expected, k))
        return block_of(pool, block.start_up, tuple(items), block.warm)

    def _block_of(self, offer: int, pool: int, items: tuple[Item, ...]) -> Block:
        kind = int(self.pricing.figures.kind_of_pool[self.pool_of(pool)])
        warm = self.warm_of(offer, pool)
        start = float(self.pricing.figures.start[kind, offer])
        return block_of(pool, start, items, warm.ready if warm else ())

    def _cost(self, offer: int, block: Block, packing: Packing) -> float:
        placed = packing.placed[block.pool]
        begins, start_up = placed.begins, block.start_up
        if not begins and not placed.warm:
            return 0.0
        price, least, step = self._terms[offer]
        load = block.expected if placed.is_whole else _accepted(block, placed)
        warm = self.warm_of(offer, block.pool) if block.warm else None
        if len(begins) == 1 and warm is None:
            until = begins[0] + start_up + load
        else:
            until = finish(sorted((*block.warm[: placed.warm], *(begin + start_up for begin in begins))), load)
        cost = 0.0
        for begin in begins:
            billed = max(until - begin, start_up, least)
            cost += price * (billed if step < 0.01 else math.ceil(billed / step - 1e-9) * step)
        if warm:
            cost += sum(
                hourly * max(until, each) for hourly, each in zip(warm.price, warm.ready[: placed.warm], strict=False)
            )
        return cost

    def _besides(self, offer: int, block: Block, parts: dict[int, float], packing: Packing) -> float:
        """What is paid besides time: once for each start, and for the data of what was accepted."""
        placed, besides = packing.placed[block.pool], self.pricing.besides
        kind = int(self.pricing.figures.kind_of_pool[self.pool_of(block.pool)])
        usd = len(placed.begins) * besides.once_at(kind, offer)
        for item, accepted in zip(block.items, placed.accepted, strict=True):
            share = accepted / item.load if item.load else 1.0
            usd += parts[item.key] * share * besides.moving_at(item.key, offer)
        return usd

    def put(self, offer: int, berth: Berth) -> None:
        before = self.berth(offer)
        self.log.append((offer, before))
        self._replace(offer, before, berth)

    def undo(self, mark: int) -> None:
        while len(self.log) > mark:
            offer, berth = self.log.pop()
            self._replace(offer, self.berth(offer), berth)

    def _replace(self, offer: int, before: Berth, berth: Berth) -> None:
        self.berths[offer] = berth
        if before.loads.keys() != berth.loads.keys():
            for pool in map(self.pool_of, before.loads):
                if (offer, pool) not in self.warm:
                    self._of_pool[pool].discard(offer)
            for pool in map(self.pool_of, berth.loads):
                self._of_pool.setdefault(pool, set()).add(offer)
        if not self.pricing.figures.view.quotas and not self.pricing.figures.view.budgets:
            return  # nobody asks
        listed = self.pricing.figures.offers[offer]
        more = (berth.packing.instances - before.packing.instances) * listed.quota_units
        self.of_quota[listed.quota_group] = self.of_quota.get(listed.quota_group, 0) + more
        for sign, each in ((-1.0, before), (1.0, berth)):
            for pool, cost in each.costs.items():
                project = self.pricing.figures.pools[self.pool_of(pool)].project
                self.of_project[project] = self.of_project.get(project, 0.0) + sign * cost

    def is_affordable(self, offer: int, berth: Berth) -> bool:
        """Whether quotas and budgets allow this berth in the place of the one that is there."""
        before, view = self.berth(offer), self.pricing.figures.view
        listed = self.pricing.figures.offers[offer]
        quota = view.quotas.get(listed.quota_group)
        more = (berth.packing.instances - before.packing.instances) * listed.quota_units
        if quota is not None and more > 0 and self.of_quota.get(listed.quota_group, 0) + more > quota:
            return False
        for pool, cost in berth.costs.items() if view.budgets else ():
            project = self.pricing.figures.pools[self.pool_of(pool)].project
            budget = view.budgets.get(project)
            added = cost - before.costs.get(pool, 0.0)
            if budget is not None and added > 0 and self.of_project.get(project, 0.0) + added > 0.998 * budget / 1e9:
                return False
        return True

    @property
    def cost(self) -> float:
        return math.fsum(berth.cost for berth in self.berths.values())

    def with_part(self, offer: int, k: int, part: float, pool: int) -> Loads:
        """The loads of an offer with a part of a class more (or less) in a block."""
        loads = dict(self.berth(offer).loads)
        parts = dict(loads.get(pool, {}))
        parts[k] = parts.get(k, 0.0) + part
        if parts[k] <= CRUMB:
            del parts[k]
        loads[pool] = parts
        if not parts:
            del loads[pool]
        return loads


def _accepted(block: Block, placed: Placed) -> float:
    """Expected hours of what was accepted of a block."""
    return sum(
        item.expected * (accepted / item.load if item.load else 1.0)
        for item, accepted in zip(block.items, placed.accepted, strict=True)
    )
