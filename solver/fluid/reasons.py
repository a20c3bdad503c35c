"""Why works run where they run, for whole classes at a time: the sentences of `explain` from tables instead of verdicts.

Works that wait are explained by `explain` and `relax` themselves, on a short list of offers: those that are eligible or that few
rules stand before, cheapest first. What is suggested is verified by solving the work again on what the plan leaves free.
"""

from __future__ import annotations

import bisect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal

import msgspec
import numpy as np

from ledger.money import div_half_even
from solver import explain
from solver.durations import PPM
from solver.eligibility import ELIGIBLE, Funnel
from solver.fluid.classes import Classes, group
from solver.fluid.figures import OPEN, Figures, Floats, Ints
from solver.fluid.masks import Masks
from solver.types import Assignment, Choice, OfferView, Relaxation, Snapshot, Unplaced, Work
from solver.view import View

# Cheaper offers that a rule excluded: so many are named, the cheapest; the sentence says how many there were.
NAMED = 10
# Waiting works whose relaxations are sought by solving again, a few milliseconds each; the others get reasons alone.
RELAXED = 20
# Offers on the short list of a waiting work.
SHORT_LIST = 24


@dataclass(frozen=True, slots=True)
class _Table:
    """A class's offers by price alone, in nano-USD per million tokens: all, and in ascending order those open and those not."""

    price: Floats
    codes: Ints
    open_order: list[int]
    closed_order: list[int]


@dataclass(slots=True)
class Reasons:
    """Explanations of one plan at scale."""

    masks: Masks
    _tables: dict[int, _Table] = field(default_factory=dict)
    _sentences: dict[tuple[int, int, int], str] = field(default_factory=dict)
    _funnels: dict[int, Funnel] = field(default_factory=dict)

    @property
    def classes(self) -> Classes:
        return self.masks.classes

    def funnels(self) -> dict[str, Funnel]:
        """One funnel per work; works of a class share theirs."""
        works = self.masks.figures.works
        found = {}
        for k, members in enumerate(self.classes.members):
            funnel = self._funnels.get(k) or self.masks.funnel(k)
            for work in members:
                found[works[work].id] = funnel
        return dict(sorted(found.items()))

    def choices(self, assignments: Sequence[Assignment]) -> tuple[Choice, ...]:
        """One choice for each work that has a place, in the order of the works."""
        figures = self.masks.figures
        of_class = {figures.works[each].id: k for k, members in enumerate(self.classes.members) for each in members}
        number = {offer.key: index for index, offer in enumerate(figures.offers)}
        placed: dict[str, list[Assignment]] = {}
        for each in assignments:
            placed.setdefault(each.work_id, []).append(each)
        works = {work.id: work for work in figures.works}
        by_class = sorted(
            placed, key=lambda each: (of_class[each], each)
        )  # one table at a time: all would be a gigabyte
        found = {each: self._choice(works[each], of_class[each], placed[each], number) for each in by_class}
        return tuple(found[each] for each in sorted(found))

    def _choice(self, work: Work, k: int, placed: list[Assignment], number: Mapping[str, int]) -> Choice:
        figures = self.masks.figures
        main = max(placed, key=lambda each: (each.share_ppm, each.offer_key))
        here_at = number[main.offer_key]
        tokens = max(1, work.input_tokens + work.output_tokens_p50)
        paid = div_half_even(
            sum(each.cost_nano for each in placed) * PPM * PPM, tokens * sum(each.share_ppm for each in placed)
        )
        table = self._table(k)
        here = table.price[here_at]
        best = next((each for each in table.open_order if each != here_at), None)
        cheaper = [each for each in table.closed_order if table.price[each] < here]
        offers = self.masks.figures.offers
        key = (k, here_at, len(placed))
        if key not in self._sentences:
            self._sentences[key] = self._words(k, here_at, best, cheaper, len(placed))
        return Choice(
            work_id=work.id,
            offer_key=main.offer_key,
            usd_nano_per_million=paid,
            next_best_key=offers[best].key if best is not None else None,
            next_best_nano_per_million=int(table.price[best]) if best is not None else None,
            cheaper_excluded=tuple((offers[each].key, self.masks.rule_of(int(table.codes[each]))) for each in cheaper),
            sentence=f"{main.offer_key} at {explain.usd(paid)} per million tokens{self._sentences[key]}"
            + explain.held_back(figures.view, work, main),
        )

    def _words(self, k: int, here_at: int, best: int | None, cheaper: list[int], places: int) -> str:
        table, offers = self._table(k), self.masks.figures.offers
        text = f", together with {places - 1} more" if places > 1 else ""
        if best is None:
            text += ": the only eligible offer"
        elif table.price[best] >= table.price[here_at]:
            eligible = int(np.count_nonzero(table.codes == OPEN))
            next_best = f"{offers[best].key} at {explain.usd(int(table.price[best]))}"
            text += f": the cheapest of {eligible} eligible offers; next is {next_best}"
        else:
            text += (
                f": {offers[best].key} would cost {explain.usd(int(table.price[best]))} by itself, "
                "but all queued work together costs less this way, or its capacity is taken"
            )
        many = int(np.count_nonzero((table.codes != OPEN) & (table.price < table.price[here_at])))
        if not many:
            return text + "."
        noun = "offer was" if many == 1 else "offers were"
        example = self.masks.example(k, int(table.codes[cheaper[0]]), cheaper[0])
        more = "." if many == 1 else f" and {many - 1} more."
        return f"{text}. {many} cheaper {noun} excluded: {example} ({self.masks.rule_of(int(table.codes[cheaper[0]]))}){more}"

    def _table(self, k: int) -> _Table:
        if k not in self._tables:
            self._tables.clear()
            many = len(self.masks.figures.offers)
            tokens = max(1.0, float(self.classes.largest[k]))
            price = self.masks.alone_cost(k)[:many] / tokens * 1e15
            codes = self.masks.offer_codes(k)
            self._funnels[k] = self.masks.funnel(k, codes)  # the codes are not kept, and cost as much again
            is_open, known = codes == OPEN, np.isfinite(price)
            self._tables[k] = _Table(
                price, codes, _least(price, is_open & known, 2), _least(price, ~is_open & known, NAMED)
            )
        return self._tables[k]

    def unplaced(self, missing: Mapping[str, int], rest: Snapshot) -> tuple[Unplaced, ...]:
        """Every work that is not wholly served. `missing`: its millionths without a place, `rest`: what the plan leaves free."""
        found = []
        works = self.masks.figures.works
        of_class = {works[each].id: k for k, members in enumerate(self.classes.members) for each in members}
        for number, work_id in enumerate(sorted(missing)):
            work = works[bisect.bisect_left(works, work_id, key=lambda each: each.id)]
            found.append(self._unplaced(work, of_class[work_id], missing[work_id], rest, number < RELAXED))
        return tuple(found)

    def _unplaced(self, work: Work, k: int, ppm: int, rest: Snapshot, is_relaxed: bool) -> Unplaced:
        funnel = self.masks.funnel(k)
        short = self.short_list(k)
        word, reason, relaxations = explain.waiting(work, _only(rest, work, short), is_relaxed=is_relaxed)
        share = (f"{Decimal(PPM - ppm).scaleb(-4)} % of it has a place",) if ppm < PPM else ()
        counted = tuple(f"{step.rule} ({step.count}): {step.example}" for step in funnel if step.rule != ELIGIBLE)
        empty: tuple[Relaxation, ...] = ()
        return Unplaced(
            work_id=work.id,
            waiting_on=word,
            reasons=(reason, *share, *counted),
            relaxations=relaxations if is_relaxed else empty,
        )

    def short_list(self, k: int) -> list[OfferView]:
        """The offers that may be of use: eligible ones, then those that one late rule excludes, cheapest first."""
        table = self._table(k)
        known = np.isfinite(table.price)
        is_open = table.codes == OPEN
        chosen = set(_least(table.price, is_open & known, SHORT_LIST))
        for code in sorted(set(table.codes.tolist()) - {OPEN}):
            chosen.update(_least(table.price, (table.codes == code) & known, SHORT_LIST // 4))
        if not chosen:
            chosen.update(range(min(SHORT_LIST, len(table.codes))))
        return [self.masks.figures.offers[each] for each in sorted(chosen)]


def reasons_of(view: View) -> Reasons:
    """What explains a plan of the view's works."""
    figures = Figures(view)
    return Reasons(Masks(figures, group(figures)))


def _least(price: Floats, among: np.ndarray[tuple[int], np.dtype[np.bool_]], many: int) -> list[int]:
    """The cheapest of those flagged, in ascending order."""
    few = np.flatnonzero(among)
    if few.size > many:
        few = few[np.argpartition(price[few], many - 1)[:many]]
    return [int(each) for each in few[np.lexsort((few, price[few]))]]


def _only(snapshot: Snapshot, work: Work, offers: Sequence[OfferView]) -> Snapshot:
    """The snapshot with these offers, as it has them, and what runs on them."""
    keys = {each.key for each in offers}
    return msgspec.structs.replace(
        snapshot,
        works=(work,),
        offers=tuple(each for each in snapshot.offers if each.key in keys),
        running=tuple(each for each in snapshot.running if each.offer_key in keys),
    )
