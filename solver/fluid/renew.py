"""Ruin and recreate: take some blocks out where they compete, put their work back one by one, keep what came out cheaper.

After Schrimpf et al. 2000 and Christiaens and Vanden Berghe 2020: what is taken out lies together (the places of one class and
the offers that would serve it cheapest), the order in which it goes back is changed, and at first what is a little dearer is kept
as well, which lets blocks change places. Moving whole blocks alone (`Restoration.improve`) ends in a plan from which no single
move is cheaper. It stops on counts and uses its own random numbers: same snapshot, same plan.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import accumulate
from random import Random

from solver.fluid.restore import Restoration
from solver.fluid.yard import CRUMB, Berth

# Places looked at for each part that goes back: more cost as much again and find 0.1 % less in the same time.
PLACES = 6
# Parts of classes taken out together at most, and the cheapest offers of a class that lose blocks for it.
PARTS, NEIGHBOURS = 18, 24
# How much dearer a plan may be that is kept, at first and in the end, as a part of what a class costs in the mean; with fewer
# than so many renewals of each class it begins lower, for there is no time to come down.
WARM, COLD, TO_COOL = 0.35, 0.01, 8.0
# This part of the renewals is around any class, the others around one of a block that costs more than its work is worth, the
# likelier the more it does. At 2,000 works and 1,000 offers 400 renewals ended at 10,243 USD, with all around any at 10,310, with
# none at 10,266.
ANYWHERE = 0.5
SEED = 7


@dataclass(slots=True)
class Renewal:
    """Renews a yard that holds a plan. `where` has the offers of each class, `least` what its busy time costs at least."""

    restoration: Restoration
    where: dict[int, dict[int, None]] = field(default_factory=dict)
    least: dict[int, float] = field(default_factory=dict)
    random: Random = field(default_factory=lambda: Random(SEED))

    def __post_init__(self) -> None:
        for offer, berth in sorted(self.restoration.yard.berths.items()):
            self._note(offer, None, berth)

    def run(self, renewals: int) -> float:
        """USD that so many renewals save, never less than nothing."""
        yard = self.restoration.yard
        classes = sorted(self.where)
        if not classes or not renewals:
            return 0.0
        first, before = dict(yard.berths), yard.cost
        mean = before / len(classes)
        warm = WARM * mean * min(1.0, renewals / (TO_COOL * len(classes)))
        cold = min(warm, COLD * mean)
        changed = 0.0
        yard.log.clear()
        draw = self._draw(classes)
        for number in range(renewals):
            heat = warm * (cold / warm) ** (number / renewals) if warm > 0 else 0.0
            changed += self._renew(draw(), heat)
        if changed > 0:
            for offer in sorted(yard.berths):
                yard.put(offer, first.get(offer, Berth.empty()))
            yard.log.clear()
            return 0.0
        return -changed

    def _draw(self, classes: list[int]) -> Callable[[], int]:
        """Draws the class that a renewal is around, by what its blocks wasted at first."""
        wasted: dict[int, float] = {}
        yard = self.restoration.yard
        for usd, offer, block in self.restoration.wasteful():
            hours = {k: part * yard.hours(k, offer)[0] for k, part in yard.berth(offer).loads[block].items()}
            total = sum(hours.values())
            for k, each in hours.items() if total > 0 else ():
                wasted[k] = wasted.get(k, 0.0) + usd * each / total
        of, until = list(wasted), list(accumulate(wasted.values()))
        if not of:
            return lambda: self.random.choice(classes)
        return lambda: (
            self.random.choice(classes)
            if self.random.random() < ANYWHERE
            else self.random.choices(of, cum_weights=until)[0]
        )

    def _renew(self, k: int, heat: float) -> float:
        """One renewal around a class: USD that the plan costs more since, 0 if it was taken back."""
        yard = self.restoration.yard
        dearer = -heat * math.log(1.0 - self.random.random())  # a plan by less than this is kept
        taken = self._take_out(k)
        is_back = self._put_back(taken, dearer - self._added(0))
        before: dict[int, Berth] = {}
        for offer, berth in yard.log:
            before.setdefault(offer, berth)
        more = self._added(0)
        if not is_back or more >= dearer:
            yard.undo(0)
            for offer in before:
                self.restoration.reopen(offer)
            return 0.0
        for offer, berth in before.items():
            self._note(offer, berth, yard.berth(offer))
        yard.log.clear()
        return more

    def _note(self, offer: int, before: Berth | None, after: Berth) -> None:
        """Keep `where` true of an offer that changed."""
        for parts in before.loads.values() if before is not None else ():
            for k in parts:
                self.where[k].pop(offer, None)
        for parts in after.loads.values():
            for k in parts:
                self.where.setdefault(k, {})[offer] = None

    def _take_out(self, k: int) -> dict[int, float]:
        """Blocks of the class, and others where it would be cheapest; the parts of classes that they held."""
        yard = self.restoration.yard
        pool = int(yard.pricing.classes.pool[k])
        left = self.random.randint(1, PARTS)
        taken: dict[int, float] = {}
        for offer in dict.fromkeys([*self.where[k], *self.restoration.lean(k)[0][:NEIGHBOURS]]):
            loads = yard.berth(offer).loads
            if not loads:
                continue
            mine = sorted(block for block in loads if yard.pool_of(block) == pool)
            which = next((block for block in mine if k in loads[block]), None)
            if which is None and mine and self.random.random() < 0.5:
                which = mine[0] if len(mine) == 1 else self.random.choice(mine)
            if which is None:
                if self.random.random() < 0.5:
                    continue
                which = self.random.choice(sorted(loads))
            without = yard.weigh(offer, {each: parts for each, parts in loads.items() if each != which})
            if not without.packing.is_whole:  # what begins earlier may stand in the way of another
                continue
            for each, part in loads[which].items():
                taken[each] = taken.get(each, 0.0) + part
            left -= len(loads[which])
            yard.put(offer, without)
            self.restoration.reopen(offer)
            if left <= 0:
                break
        return taken

    def _put_back(self, taken: dict[int, float], most: float) -> bool:
        """Whether all of it has a place again for less than `most` USD. It ends where what is left, busy time alone, is too dear:
        nine of ten renewals are not kept, and most of these show it early."""
        log = self.restoration.yard.log
        left = sum(part * self._busy(k) for k, part in taken.items())
        spent = 0.0
        for k in sorted(taken, key=self._order(taken)):
            if spent + left >= most:
                return False
            mark = len(log)
            if self.restoration.insert(k, taken[k], PLACES) > CRUMB:
                return False
            spent += self._added(mark)
            left -= taken[k] * self._busy(k)
        return spent < most

    def _added(self, mark: int) -> float:
        """USD that what was put since a mark of the log adds."""
        yard = self.restoration.yard
        first: dict[int, Berth] = {}
        for offer, berth in yard.log[mark:]:
            first.setdefault(offer, berth)
        return sum(yard.berth(offer).cost - berth.cost for offer, berth in first.items())

    def _busy(self, k: int) -> float:
        """USD of the whole class where its busy time is cheapest."""
        if k not in self.least:
            pricing = self.restoration.pricing
            usd, _ = pricing.whole(k, pricing.masks.few(k))
            self.least[k] = float(usd.min()) if usd.size else 0.0
        return self.least[k]

    def _order(self, taken: dict[int, float]) -> Callable[[int], tuple[float, int]]:
        """By deadline, by what it costs, or any."""
        classes, way = self.restoration.yard.pricing.classes, self.random.randrange(3)
        if way == 0:
            return lambda k: (float(classes.bucket[k]), k)
        if way == 1:
            return lambda k: (-taken[k] * min(self.restoration.lean(k)[1], default=0.0), k)
        drawn = {k: self.random.random() for k in sorted(taken)}
        return lambda k: (drawn[k], k)
