"""From parts of classes to instances: place what the program says, see what fits, and put the rest where it costs least.

Each step may only improve: what is moved is moved back when that was cheaper. It stops on counts.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from solver.fluid.figures import Floats, Ints
from solver.fluid.least import least_usd
from solver.fluid.prices import NEVER, Pricing, Scarcity
from solver.fluid.yard import CRUMB, LEAST_H, Berth, Loads, Yard, least_hours

# Places looked at for one part of a class, and for one that a move would improve.
PLACES, PLACES_OF_A_MOVE = 12, 4
# Offers remembered of a class, cheapest first.
KEPT = 3 * PLACES + 12
# Offers tried for a part that a move would improve, those that are full included.
TRIES_OF_A_MOVE = 48
# A part that fits only to less than this is not split off, unless its hours are worth a place of their own.
LEAST_PART = 0.02

Part = tuple[int, float]
# Offers and their prices, cheapest first: arrays, for as lists of Python's numbers they take five times as much.
Lean = tuple["array[int]", "array[float]"]


@dataclass(slots=True)
class Restoration:
    """Places parts of classes in a yard by their price: what they add to the cost, and the scarcity of what they take.

    `threshold`: the part of a block's cost that moving it must save.
    """

    pricing: Pricing
    yard: Yard
    scarcity: Scarcity
    edges: Floats
    left: list[Part] = field(default_factory=list)
    threshold: float = 1e-6
    _lean: dict[int, Lean] = field(default_factory=dict)
    _hourly: dict[tuple[int, int], tuple[Floats, Floats]] = field(default_factory=dict)
    _full: dict[int, int] = field(default_factory=dict)
    _busy: list[float] | None = None
    _starts: dict[int, list[float]] = field(default_factory=dict)

    def take(self, pieces: list[tuple[int, int, float]], *, least: float = LEAST_H, is_held: bool = False) -> None:
        """Put parts where a program or a first placement says, as far as they fit; the rest is `left`, and what takes less than
        `least` hours there."""
        loads: dict[int, Loads] = {}
        offer_of = self.pricing.figures.resources.offer
        for k, r, part in pieces:
            offer = int(offer_of[r])
            if part * self.yard.hours(k, offer)[0] < least and part < 0.95:
                self.left.append((k, part))
                continue
            parts = loads.setdefault(offer, {}).setdefault(self.yard.turn(k, offer), {})
            parts[k] = parts.get(k, 0.0) + part
        for offer in sorted(loads):
            self._settle(offer, loads[offer])
            if not is_held:
                self.merge(offer)
        self.yard.log.clear()

    def _settle(self, offer: int, loads: Loads) -> None:
        """Keep at the offer what fits, and no more."""
        for _ in range(4):
            berth = self.yard.weigh(offer, loads)
            if berth.packing.is_whole and self.yard.is_affordable(offer, berth):
                self.yard.put(offer, berth)
                return
            loads = self._less(berth) if not berth.packing.is_whole else {}
        for parts in loads.values():
            self.left.extend(parts.items())

    def merge(self, offer: int) -> None:
        """Make one block of two of a pool where that costs less: all of it still is in time."""
        yard = self.yard
        while True:
            berth = yard.berth(offer)
            blocks = sorted(
                berth.loads, key=lambda block: (yard.pool_of(block), berth.blocks[block].items[0].due, block)
            )
            for one, two in pairwise(blocks):
                if yard.pool_of(one) != yard.pool_of(two):
                    continue
                loads = {each: parts for each, parts in berth.loads.items() if each not in (one, two)}
                loads[min(one, two)] = {**berth.loads[one], **berth.loads[two]}
                merged = yard.weigh(offer, loads)
                if merged.packing.is_whole and merged.cost < berth.cost:
                    yard.put(offer, merged)
                    break
            else:
                return

    def _less(self, berth: Berth) -> Loads:
        """The loads without what was not accepted, which is left."""
        kept: Loads = {}
        for pool, parts in berth.loads.items():
            accepted = self._accepted(berth, pool)
            for k, part in parts.items():
                stays = part * accepted[k] * (1 - 1e-9)
                if stays < max(LEAST_PART * part, CRUMB):
                    stays = 0.0
                if stays:
                    kept.setdefault(pool, {})[k] = stays
                if part - stays > CRUMB:
                    self.left.append((k, part - stays))
        return kept

    def _accepted(self, berth: Berth, pool: int) -> dict[int, float]:
        """By class, which part of what it asked for was accepted."""
        placed = berth.packing.placed[pool]
        return {
            item.key: accepted / item.load if item.load else 1.0
            for accepted, item in zip(placed.accepted, placed.items, strict=True)
        }

    def finish(self) -> list[Part]:
        """Place all that is left; what has no place at all is returned."""
        classes = self.pricing.classes
        merged: dict[int, float] = {}
        for k, part in self.left:
            merged[k] = merged.get(k, 0.0) + part
        self.left = []
        order = sorted(merged, key=lambda k: (-classes.priority[k], classes.bucket[k], -self._size(k) * merged[k], k))
        nowhere = []
        for k in order:
            rest = self.insert(k, merged[k], PLACES)
            if rest > CRUMB:  # the cheapest offers are full: look at all of them
                offers, prices = self.cheapest_first(k, len(self.pricing.figures.resources))
                self._lean[k] = self._not_full(k, offers, prices)
                rest = self.insert(k, rest, PLACES)
                # thousands of such lists were half of the memory
                self._lean[k] = (offers[:KEPT], prices[:KEPT])
            self.yard.log.clear()
            if rest > CRUMB:
                nowhere.append((k, rest))
        return nowhere

    def _not_full(self, k: int, offers: array[int], prices: array[float]) -> Lean:
        """Without those that are full for the class: what is full stays so until something is taken away."""
        bucket = int(self.pricing.classes.bucket[k])
        kept = [
            (offer, price) for offer, price in zip(offers, prices, strict=True) if self._full.get(offer, -1) < bucket
        ]
        return array("q", [offer for offer, _ in kept]), array("d", [price for _, price in kept])

    def _size(self, k: int) -> float:
        return float(self.pricing.classes.tokens_in[k] + self.pricing.classes.tokens_out[k])

    def insert(self, k: int, part: float, places: int) -> float:
        """Put a part of a class where it costs least, in pieces if it must be; what found no place is returned."""
        refused: dict[int, float] = {}
        while part > CRUMB:
            best = self._best(k, part, places, refused)
            if best is None:
                return part
            offer, berth, fits = best
            self.yard.put(offer, berth)
            part -= fits
        return 0.0

    def _best(
        self,
        k: int,
        part: float,
        places: int,
        refused: dict[int, float],
        tries: int | None = None,
        most: float = np.inf,
    ) -> tuple[int, Berth, float] | None:
        """Where (a piece of) the part adds least to the cost. `refused`: parts that an offer had no place for; not even half
        of one is worth asking again. Nothing is sought that adds `most` USD."""
        bucket = int(self.pricing.classes.bucket[k])
        best: tuple[int, Berth, float] | None = None
        least, looked = np.inf, 0
        for price, offer in self._at_least(k, part):
            if price >= least or looked >= places:
                break
            if self._full.get(offer, -1) >= bucket or part > 0.5 * refused.get(offer, np.inf):
                continue
            if tries is not None and (tries := tries - 1) < 0:
                break
            if most < np.inf and (price - self._rent(k, offer)) * part >= most:
                continue
            trial = self.fit(offer, k, part)
            if trial is None:
                refused[offer] = part
                continue
            looked += 1
            berth, fits = trial
            added = (berth.cost - self.yard.berth(offer).cost) / fits + self._rent(k, offer)
            if added < least:
                least, best = added, (offer, berth, fits)
        return best

    def _at_least(self, k: int, part: float) -> list[tuple[float, int]]:
        """What a whole class costs at least if (a piece of) this part is put at an offer, its start included where the pool has
        none there yet; ascending."""
        offers, prices = self.lean(k)
        started = self.yard.started(int(self.pricing.classes.pool[k]))
        starting = self._starting(int(self.pricing.classes.kind[k]))
        found = [
            (price if offer in started else price + starting[offer] / part, offer)
            for offer, price in zip(offers, prices, strict=True)
        ]
        found.sort()
        return found

    def _starting(self, kind: int) -> list[float]:
        """USD of a start of a kind at each offer, what is paid once for it included."""
        if kind not in self._starts:
            many = len(self.pricing.figures.offers)
            figures = self.pricing.figures
            starts = figures.start[kind, :many] * figures.resources.price[:many] + self.pricing.besides.once(kind)
            self._starts[kind] = starts.tolist()
        return self._starts[kind]

    def fit(self, offer: int, k: int, part: float) -> tuple[Berth, float] | None:
        """The offer with as much of the part as fits, or None."""
        best: tuple[Berth, float] | None = None
        cost = self.yard.berth(offer).cost
        for block in self.yard.choices(offer, k):
            trial = self._try_in(offer, k, part, block)
            if trial is not None and (
                best is None or (trial[0].cost - cost) * best[1] < (best[0].cost - cost) * trial[1]
            ):
                best = trial
            if trial is not None and trial[1] >= part:
                break
        if best is None:
            self._note_full(offer, k, part)
        return best

    def _try_in(self, offer: int, k: int, part: float, pool: int) -> tuple[Berth, float] | None:
        yard = self.yard
        berth = yard.weigh_with(offer, k, part, pool)
        if berth is not None and not berth.packing.is_whole:
            accepted = self._accepted(berth, pool)
            if any(share < 1 - 1e-12 for each, share in accepted.items() if each != k):
                berth = None
            else:
                had = yard.berth(offer).loads.get(pool, {}).get(k, 0.0)
                fits = (part + had) * accepted[k] * (1 - 1e-6) - had
                least = least_hours(float(self.pricing.classes.due[k])) / max(yard.hours(k, offer)[1], 1e-12)
                if fits < min(part, max(LEAST_PART, 0.1 * part), max(least, CRUMB)):
                    berth = None
                else:
                    part = fits
                    berth = yard.weigh_with(offer, k, part, pool)
        if berth is None or not berth.packing.is_whole:
            return None
        return (berth, part) if yard.is_affordable(offer, berth) else None

    def _note_full(self, offer: int, k: int, part: float) -> None:
        # Small work may still fit beside what is there: only what was small itself proves that the offer is full.
        if part * self.yard.hours(k, offer)[1] <= 2.0:
            self._full[offer] = max(self._full.get(offer, -1), int(self.pricing.classes.bucket[k]))

    def reopen(self, offer: int) -> None:
        """Forget that an offer was full: something was taken away from it."""
        self._full.pop(offer, None)

    def lean(self, k: int) -> Lean:
        """Offers that may serve the class, by the least that it can cost there: no start-up, scarcity included."""
        if k not in self._lean:
            self._lean[k] = self.cheapest_first(k, KEPT)
        return self._lean[k]

    def cheapest_first(self, k: int, many: int) -> Lean:
        """As `lean`, of so many resources."""
        at, price = self._price(k)
        few = np.flatnonzero(np.isfinite(price))
        if few.size > many:
            few = few[np.argpartition(price[few], many - 1)[:many]]
        few = few[np.lexsort((few, price[few]))]
        offers: dict[int, float] = {}
        for offer, each in zip(
            self.pricing.figures.resources.offer[at[few]].tolist(), price[few].tolist(), strict=True
        ):
            offers.setdefault(offer, each)
        return array("q", offers), array("d", offers.values())

    def _price(self, k: int) -> tuple[Ints, Floats]:
        kind, bucket = int(self.pricing.classes.kind[k]), int(self.pricing.classes.bucket[k])
        if (kind, bucket) not in self._hourly:
            _, scarce = self.pricing.hourly(kind, bucket, self.scarcity, self.edges, is_bound=True)
            late = self.pricing.figures.start[kind] >= 0.95 * self.edges[bucket]
            self._hourly[kind, bucket] = (np.where(late, NEVER, self.pricing.figures.resources.price), scarce)
        at, price = self.pricing.of_class(k, *self._hourly[kind, bucket])
        return at, price + self.pricing.besides.moving(k, at) if self.pricing.besides.is_any else price

    def _rent(self, k: int, offer: int) -> float:
        """Scarcity of the hours that the whole class takes at an offer, in USD."""
        kind, bucket = int(self.pricing.classes.kind[k]), int(self.pricing.classes.bucket[k])
        self._price_ready(k)
        return self.yard.hours(k, offer)[1] * float(self._hourly[kind, bucket][1][offer])

    def _price_ready(self, k: int) -> None:
        if (int(self.pricing.classes.kind[k]), int(self.pricing.classes.bucket[k])) not in self._hourly:
            self._price(k)

    def make_room(self, nowhere: list[Part]) -> list[Part]:
        """Put parts that found no place where works of lower priority are; those are returned, and what still has no place."""
        priority = self.pricing.classes.priority
        out: list[Part] = []
        for k, part in sorted(nowhere, key=lambda each: (-int(priority[each[0]]), each[0])):
            rest = part
            for offer in self.lean(k)[0][:PLACES]:
                berth = self.yard.berth(offer)
                lower = [
                    (pool, each, share)
                    for pool, parts in berth.loads.items()
                    for each, share in parts.items()
                    if priority[each] < priority[k]
                ]
                if rest <= CRUMB or not lower:
                    continue
                mark = len(self.yard.log)
                kept: Loads = {}
                gone = {each for _, each, _ in lower}
                for pool, parts in berth.loads.items():
                    if stay := {each: share for each, share in parts.items() if each not in gone}:
                        kept[pool] = stay
                self.yard.put(offer, self.yard.weigh(offer, kept))
                trial = self.fit(offer, k, rest)
                if trial is None:
                    self.yard.undo(mark)
                    continue
                self.yard.put(offer, trial[0])
                rest -= trial[1]
                out.extend((each, share) for _, each, share in lower)
                self._full.clear()
            if rest > CRUMB:
                out.append((k, rest))
        return out

    def improve(self, moves: int) -> int:
        """Try to empty the blocks that cost most beyond the price of their work; at most `moves` are looked at."""
        done = 0
        for _, offer, pool in self.wasteful()[:moves] if moves else ():
            done += self._dissolve(offer, pool)
            self.yard.log.clear()
        return done

    def wasteful(self) -> list[tuple[float, int, int]]:
        """(USD beyond the price of its work, offer, block) of the blocks that cost more than it, most first."""
        found = []
        least = self._least()
        for offer, berth in sorted(self.yard.berths.items()):
            for pool, cost in sorted(berth.costs.items()):
                worth = sum(part * least(k) for k, part in berth.loads[pool].items())
                rent = sum(part * self._rent(k, offer) for k, part in berth.loads[pool].items())
                if cost + rent - worth > 0.02 * cost:
                    found.append((cost + rent - worth, offer, pool))
        return sorted(found, key=lambda each: (-each[0], each[1], each[2]))

    def busy(self, k: int) -> float:
        """USD of the whole class where its busy time is cheapest, 0 where it has no place."""
        if self._busy is None:
            price = self.pricing.figures.resources.price
            usd = least_usd(self.pricing, lambda _: price, self.pricing.classes.due_up, is_bound=True)
            self._busy = np.where(np.isfinite(usd), usd, 0.0).tolist()
        return self._busy[k]

    def _least(self) -> Callable[[int], float]:
        """What a whole class costs at least, scarcity included, 0 where it has no place."""
        if self.scarcity.rent > 0 or self.pricing.besides.is_any:
            return lambda k: self.lean(k)[1][0] if self.lean(k)[1] else 0.0
        classes, price = self.pricing.classes, self.pricing.figures.resources.price
        usd = least_usd(self.pricing, lambda _: price, 0.95 * self.edges[classes.bucket], is_bound=False)
        found: list[float] = np.where(np.isfinite(usd), usd, 0.0).tolist()
        return lambda k: found[k]

    def _dissolve(self, offer: int, pool: int) -> bool:
        """Move a block's parts elsewhere, each where it costs least; take it back unless that saves."""
        berth = self.yard.berth(offer)
        parts = berth.loads.get(pool)
        if not parts:
            return False
        mark = len(self.yard.log)
        without = self.yard.weigh(offer, {each: those for each, those in berth.loads.items() if each != pool})
        if not without.packing.is_whole:  # what begins earlier may stand in the way of another
            return False
        saved = berth.cost - without.cost
        self.yard.put(offer, without)
        full = self._full.pop(offer, None)
        most, left = saved * (1 - self.threshold), sum(part * self.busy(k) for k, part in parts.items())
        spent = 0.0
        for k, part in sorted(parts.items(), key=lambda each: (-each[1] * self._size(each[0]), each[0])):
            left -= part * self.busy(k)
            spent += self._move(k, part, most - spent - left)
            if spent + left >= most:  # what is left costs its busy time at least
                self.yard.undo(mark)
                if full is not None:
                    self._full[offer] = full
                return False
        return True

    def _move(self, k: int, part: float, most: float) -> float:
        """What it costs to insert a part, infinite when that cannot be done."""
        spent = 0.0
        refused: dict[int, float] = {}
        while part > CRUMB:
            if spent + part * self.busy(k) >= most:
                return np.inf
            best = self._best(k, part, PLACES_OF_A_MOVE, refused, TRIES_OF_A_MOVE, most - spent)
            if best is None:
                return np.inf
            offer, berth, fits = best
            spent += berth.cost - self.yard.berth(offer).cost
            if spent >= most:
                return np.inf
            self.yard.put(offer, berth)
            part -= fits
        return spent
