"""Which variant serves each work of a large queue: the linear program of classes, in which the twins of a class share one row.

A class of works that several models or precisions may serve stands there once for each (`variants`), with the speeds, start-ups,
fit and machines of that one, and all of them together are served once. What the program puts where says which part of a class
each variant serves; the works of the class are dealt out in these parts, each whole. The queue is then planned as decided. The
prices of capacity that the program ends with prove a bound for every choice: a class costs at least what its cheapest twin costs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from solver.choose import sentence
from solver.durations import PPM
from solver.errors import Unsolved
from solver.fluid import classes as grouping
from solver.fluid.effort import Effort, counts
from solver.fluid.figures import NANO_USD, Figures, Floats
from solver.fluid.masks import Masks
from solver.fluid.prices import Pricing, Scarcity
from solver.types import Chosen, Plan, Snapshot, VariantCost, Work
from solver.variants import Twins, variants_of
from solver.variants import twins as doubled
from solver.view import View

# A variant that would serve less than this part of a class serves none of it: it would pay starts of its own.
LEAST_PART = 0.05
# Above so many classes, twins counted, no program is solved: each class takes the variant that is cheapest by itself.
PROGRAM_CLASSES = 10_000
# Up to so many, the queue is planned by its own variants as well, and the better of the two is the plan.
FEW_CLASSES = 1_000
# What the plan before must cover of the works that have a choice, so that it is gone on from.
COVERED = 0.8
# What floats may be wrong by, taken off a bound before it leaves as integer money.
BOUND_SLACK = 1e-6


@dataclass(frozen=True, slots=True)
class Choice:
    """`numbers` has the variant of each work that is not served by its own; `least` what each class of twins costs by itself, in
    USD, and `best` where. `is_held`: they are those of the plan before."""

    twins: Twins
    pricing: Pricing
    scarcity: Scarcity
    numbers: Mapping[str, int]
    least: Floats
    best: tuple[str | None, ...]
    is_held: bool = False

    @property
    def is_few(self) -> bool:
        """Whether a second plan of the queue is worth its time."""
        return not self.is_held and len(self.pricing.classes) <= FEW_CLASSES

    def own(self) -> Choice:
        """The same where each work is served by its own variant."""
        return replace(self, numbers={})

    def bounds_nano(self, plan: Plan) -> tuple[int, int]:
        """(no plan costs less, no plan that keeps each bucket's earliest deadline), whatever variants it chooses, of what is
        served here."""
        pricing, served = self.pricing, self._served(plan)
        either = [self.scarcity, pricing.free()] if self.scarcity.rent > 0 else [self.scarcity]
        edges = pricing.classes.edge_up, pricing.classes.edge_low
        up, low = (max(pricing.bound(each, edge, served) for each in either) for edge in edges)
        return _nano(up), _nano(max(low, up))

    def _served(self, plan: Plan) -> Floats:
        """The part of each class that is surely served: as much as of the work of it that is served least."""
        served: Counter[str] = Counter()
        for each in plan.assignments:
            served[each.work_id] += each.share_ppm
        classes, works, groups = self.pricing.classes, self.pricing.figures.works, self.twins.groups
        return np.array(
            [
                min(served[groups.get(works[each].id, works[each].id)] for each in those) / PPM
                for those in classes.members
            ]
        )

    def told(self, snapshot: Snapshot, plan: Plan) -> tuple[Chosen, ...]:
        """What was chosen for each work; where the snapshot asks for words, what each variant would cost, started together with
        the works that are like it."""
        placed = {each.work_id for each in plan.assignments}
        costs = self._costs() if snapshot.words else {}
        found = []
        for work in snapshot.works:
            if not work.alternatives:
                continue
            number = self.numbers.get(work.id, 0)
            model, precision = variants_of(work)[number]
            mine = costs.get(work.id, ())
            words = sentence(mine, number, is_placed=work.id in placed) if mine else ""
            found.append(Chosen(work_id=work.id, model=model, precision=precision, costs=mine, sentence=words))
        return tuple(found)

    def _costs(self) -> dict[str, tuple[VariantCost, ...]]:
        classes, works = self.pricing.classes, self.pricing.figures.works
        found: dict[str, dict[int, VariantCost]] = {}
        for k, those in enumerate(classes.members):
            whole = float(sum(_tokens(works[each]) for each in those))
            for each in those:
                work = works[each]
                if work.id not in self.twins.of:
                    continue
                base, number = self.twins.of[work.id]
                nano = None
                if np.isfinite(self.least[k]) and self.best[k] is not None:
                    nano = round(float(self.least[k]) * NANO_USD * _tokens(work) / whole)
                found.setdefault(base, {})[number] = VariantCost(
                    model=work.model,
                    precision=work.precision,
                    offer_key=None if nano is None else self.best[k],
                    nano=nano,
                    found=None if nano is not None else "no offer may serve it so",
                )
        return {base: tuple(those[number] for number in sorted(those)) for base, those in found.items()}


def choose(snapshot: Snapshot, *, is_program: bool, effort: Effort) -> Choice:
    """Which variant serves each work. A plan that is held (`Snapshot.held`) keeps its variants."""
    twins = doubled(snapshot)
    figures = Figures(View(twins.snapshot))
    classes = grouping.group(figures, fine_works=counts(effort).fine_works, twins=twins.of)
    pricing = Pricing(figures, classes, Masks(figures, classes))
    least, best = pricing.cheapest(pricing.free(), classes.edge_low, is_bound=False, many=1)
    names = tuple(figures.offers[figures.resources.offer[at[0]]].key if at.size else None for at in best)
    held = _held(snapshot)
    if held is not None:
        numbers = held | _newcomers(pricing, twins, least, held)
        return Choice(twins, pricing, pricing.free(), numbers, least, names, is_held=True)
    parts = np.zeros(len(classes))
    scarcity = pricing.free()
    if is_program and len(classes) <= PROGRAM_CLASSES:
        parts, scarcity = _by_program(pricing, parts, scarcity)
    if not parts.any():
        cheapest = classes.either(least)[classes.served_by]
        parts = np.where(np.isfinite(least) & (least <= cheapest), 1.0, 0.0)
    return Choice(twins, pricing, scarcity, _dealt(pricing, twins, parts), least, names)


def _by_program(pricing: Pricing, parts: Floats, scarcity: Scarcity) -> tuple[Floats, Scarcity]:
    # Imported here: HiGHS is for the process that solves. The broker's own fallback does without it.
    from solver.fluid.generate import generate  # noqa: PLC0415

    try:
        fluid = generate(pricing, pricing.classes.edge_low)
    except Unsolved:
        return parts, scarcity
    found = np.zeros(len(parts))
    np.add.at(found, fluid.columns.k, fluid.x)
    return found, fluid.scarcity


def _held(snapshot: Snapshot) -> dict[str, int] | None:
    """The variants of the plan before, where it covers most of the works that have a choice."""
    before = {each.work_id: (each.model, each.precision) for each in snapshot.held}
    open_works = [work for work in snapshot.works if work.alternatives]
    known = {
        work.id: variants_of(work).index(before[work.id])
        for work in open_works
        if before.get(work.id) in variants_of(work)
    }
    return known if snapshot.held and len(known) >= COVERED * len(open_works) else None


def _newcomers(pricing: Pricing, twins: Twins, least: Floats, held: Mapping[str, int]) -> dict[str, int]:
    """What the plan before did not know gets the variant that is cheapest by itself; its own may have no place anywhere."""
    classes, works = pricing.classes, pricing.figures.works
    found: dict[str, tuple[float, int]] = {}
    for k in np.flatnonzero(np.isfinite(least)):
        for each in classes.members[k]:
            base, number = twins.of.get(works[each].id, ("", 0))
            if base and base not in held:
                found[base] = min(found.get(base, (np.inf, 0)), (float(least[k]), number))
    return {base: number for base, (_, number) in found.items()}


def _dealt(pricing: Pricing, twins: Twins, parts: Floats) -> dict[str, int]:
    """The works of each class by variant, in the parts that the program gave to each; one of no part keeps its own."""
    classes, works = pricing.classes, pricing.figures.works
    variants: dict[int, list[tuple[int, float]]] = {}
    for k in range(len(classes)):
        name = works[classes.members[k][0]].id
        if name in twins.of:
            variants.setdefault(int(classes.served_by[k]), []).append((twins.of[name][1], float(parts[k])))
    found: dict[str, int] = {}
    for first, those in variants.items():
        whole = sum(part for _, part in those)
        kept = [(number, part) for number, part in sorted(those) if part >= LEAST_PART * whole and part > 0]
        if not kept:
            continue
        members = [works[each] for each in classes.members[first]]
        for work, number in zip(members, _turns([_tokens(each) for each in members], kept), strict=True):
            if number:
                found[twins.of[work.id][0]] = number
    return found


def _turns(sizes: list[int], kept: list[tuple[int, float]]) -> list[int]:
    """To which of `kept` each falls, so that the sums are nearest to their parts; in order.

    >>> _turns([1, 1, 1, 1], [(0, 0.5), (2, 0.5)])
    [0, 0, 2, 2]
    """
    whole, total = sum(part for _, part in kept), sum(sizes)
    numbers, before, at, until = [], 0.0, 0, kept[0][1] / whole
    for size in sizes:
        middle = (before + size / 2) / total
        while middle > until and at + 1 < len(kept):
            at += 1
            until += kept[at][1] / whole
        numbers.append(kept[at][0])
        before += size
    return numbers


def _tokens(work: Work) -> int:
    return work.input_tokens + work.output_tokens_p50 + 1


def _nano(usd: float) -> int:
    return max(0, int(usd * (1 - BOUND_SLACK) * NANO_USD))
