"""The whole way of a large queue: classes, first placement, program, instances, works. It stops on counts and gap."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import msgspec
import numpy as np

from solver.durations import PPM
from solver.errors import Unsolved
from solver.fluid import blocks
from solver.fluid import classes as grouping
from solver.fluid.apart import Apart
from solver.fluid.effort import Counts, Effort, counts
from solver.fluid.fairness import share_fairly
from solver.fluid.figures import NANO_USD, Figures, Floats
from solver.fluid.fill import fill
from solver.fluid.guide import Pieces, by_placement, by_program, first_prices, is_guided
from solver.fluid.least import bound_of_free
from solver.fluid.masks import Masks
from solver.fluid.prices import Pricing, Scarcity
from solver.fluid.reasons import Reasons
from solver.fluid.renew import Renewal
from solver.fluid.restore import Restoration
from solver.fluid.settle import Exact, settle
from solver.fluid.yard import MOST_TURNS, Turns, Yard
from solver.problem import Draft, Problem, bills
from solver.relax import left_for
from solver.types import Snapshot, Unplaced, Work
from solver.view import View

# Blocks that are looked at to be dissolved, the most wasteful first.
# Of a plan that is held one of so many, and no more than `HELD_MOVES`: of 158 looks at 20,000 works 3 found anything.
MOVES, HELD_ONE_OF, HELD_MOVES = 4_000, 20, 80
# How often they are looked at when none is held: the first time has made room. The second saved 0.05 to 0.4 % before the renewals
# and 0.03 to 0.3 % after them, in two thirds of the time of the first (1,000 to 5,000 works); the third 0.03 %.
PASSES = 2
# What a move must save when a plan is held, and the part of the queue that what is held must cover to be gone on from. Keeping a
# plan costs 0.05 % after every price moved by 2 %; without a threshold 9 % of all tokens move, with 3 % of a block and all blocks
# looked at it was 3.7 %.
SWITCH, COVERED = 0.05, 0.8
# Above so many classes prices are searched for from the first placement, which is faster than the program.
PROGRAM_CLASSES = 10_000
# What floats may be wrong by, taken off a bound before it leaves as integer money.
BOUND_SLACK = 1e-6
# Up to so many classes the first placement is made exact, too, and the better of the two is the plan: with few machines what was
# made of the program was once 62 % dearer, for it let go of the one that was running.
FEW_CLASSES = 200


@dataclass(frozen=True, slots=True)
class Queue:
    """A planned queue: the exact draft, its bounds in nano-USD, and what explains it.

    `bound_nano` holds for every plan; `class_bound_nano` for plans that keep each bucket's earliest deadline as if it were that
    of all its works, which is what this planner looks for.
    """

    problem: Problem
    draft: Draft
    bound_nano: int
    class_bound_nano: int
    reasons: Reasons
    is_program: bool

    def apart(self, view: View, domains: Mapping[str, str]) -> Queue:
        """The same with pools spread over failure domains."""
        problem, draft = Apart(view, self.reasons.masks, self.problem, self.draft, domains).spread()
        return replace(self, problem=problem, draft=draft)

    def missing(self) -> dict[str, int]:
        """Millionths without a place, by work."""
        served = self.draft.served_all()
        works = self.reasons.masks.figures.works
        return {work.id: PPM - served.get(work.id, 0) for work in works if served.get(work.id, 0) < PPM}

    def unplaced(self, view: View) -> tuple[Unplaced, ...]:
        missing = self.missing()
        if not missing:
            return ()
        nobody = msgspec.structs.replace(view.snapshot.works[0], id="")
        rest: Snapshot = left_for(nobody, view, self.problem, self.draft)
        return self.reasons.unplaced(missing, rest)


def plan_queue(view: View, *, is_program: bool, effort: Effort = "normal") -> Queue:
    """Plan all works of a snapshot that has some. Without `is_program` no program is solved: the first placement, made exact."""
    figures, much = Figures(view), counts(effort)
    classes = grouping.group(figures, fine_works=much.fine_works)
    masks = Masks(figures, classes)
    pricing = Pricing(figures, classes, masks)
    held, turns = held_pieces(pricing) if is_program else ([], {})
    pieces = first = held or fill(pricing)
    scarcity, is_solved, prices = pricing.free(), bool(held), None
    if is_program and not held and (found := _guided(pricing, pieces, much)):
        pieces, scarcity, prices = _open(pricing, found[0]), found[1], found[2]
        is_solved = True
    threshold = SWITCH if held else 1e-6
    moves = MOVES if is_solved else 0
    renewals = min(much.renewals * len(classes), much.most_renewals) if is_solved and not held else 0
    exact = restore(view, pricing, pieces, scarcity, moves=moves, threshold=threshold, renewals=renewals, turns=turns)
    problem, draft = exact.draft()
    if is_solved and not held and len(classes) <= FEW_CLASSES:
        simple = restore(view, pricing, first, pricing.free(), moves=0, threshold=1e-6).draft()
        problem, draft = min((problem, draft), simple, key=partial(_rank, view.snapshot.works))
    if prices is None:
        class_bound, bound = _bounds(pricing, scarcity, problem, draft, much if is_solved and not held else None)
    else:
        class_bound, bound = _bounds_by(pricing, prices, problem, draft, much)
    return Queue(
        problem=problem,
        draft=draft,
        bound_nano=_nano(bound),
        class_bound_nano=_nano(class_bound),
        reasons=Reasons(masks),
        is_program=is_solved,
    )


def _rank(works: Sequence[Work], found: tuple[Problem, Draft]) -> tuple[int, ...]:
    """Less unserved at the highest priority first (to 0.01 %), then cost."""
    problem, draft = found
    served = draft.served_all()
    missing: Counter[int] = Counter()
    for work in works:
        missing[work.priority] += PPM - served.get(work.id, 0)
    cost_nano = sum(each.total for each in bills(problem, draft).values())
    return (*(missing[level] // 100 for level in sorted(missing, reverse=True)), cost_nano)


def _open(pricing: Pricing, pieces: Pieces) -> Pieces:
    """The pieces where the rules let them be: what guides a plan has pairs that only money forbids, as a bound must."""
    return [(k, r, part) for k, r, part in pieces if pricing.masks.may_serve(k, r)]


def _bounds(
    pricing: Pricing, scarcity: Scarcity, problem: Problem, draft: Draft, much: Counts | None
) -> tuple[float, float]:
    """(the bound on plans of these classes, that on all plans) in USD. Without counts the simple one, for the first placement."""
    low, up = pricing.classes.edge_low, pricing.classes.edge_up
    served = _served(pricing, draft)
    if much is None:
        free = bound_of_free(pricing, served)  # with these prices edges do not matter
        if not scarcity.rent > 0:
            return free, free
        return pricing.bound(scarcity, low, served), max(pricing.bound(scarcity, up, served), free)
    _, prices = blocks.bound(
        pricing,
        low,
        first_prices(pricing, low, scarcity),
        plan_usd=_plan_usd(pricing, scarcity, problem, draft, served),
        served=served,
        looks=much.looks[0],
    )
    return _bounds_by(pricing, prices, problem, draft, much)


def _bounds_by(
    pricing: Pricing, prices: blocks.Prices, problem: Problem, draft: Draft, much: Counts
) -> tuple[float, float]:
    """The same from prices that a search found for plans of these classes."""
    low, up = pricing.classes.edge_low, pricing.classes.edge_up
    served = _served(pricing, draft)
    plan_usd = _plan_usd(pricing, prices.scarcity, problem, draft, served)
    looks = much.looks[1]
    usd, _ = blocks.bound(pricing, up, prices, plan_usd=plan_usd, served=served, looks=looks)
    # what holds for all plans holds for those of these classes as well
    return max(usd, blocks.proven(pricing, low, prices, served)), usd


def _plan_usd(pricing: Pricing, scarcity: Scarcity, problem: Problem, draft: Draft, served: Floats) -> float:
    """What the plan costs, and what is not served would cost something, too."""
    cost = sum(each.total for each in bills(problem, draft).values()) / NANO_USD
    if (served >= 1).all():
        return cost
    least, _ = pricing.cheapest(scarcity, pricing.classes.edge_low, is_bound=False)
    return cost + float(np.where(np.isfinite(least), least, 0.0)[served < 1].sum())


def restore(
    view: View,
    pricing: Pricing,
    pieces: list[tuple[int, int, float]],
    scarcity: Scarcity,
    *,
    moves: int,
    threshold: float,
    renewals: int = 0,
    turns: Turns | None = None,
) -> Exact:
    """Instances and exact shares from parts of classes; `turns` of those that are held."""
    # the first placement is quick: a pool has one block at an offer
    is_held = threshold >= SWITCH
    yard = Yard(pricing, turns=turns or {}, most_turns=MOST_TURNS if moves else 1, is_held=is_held)
    restoration = Restoration(pricing, yard, scarcity, pricing.classes.edge_low, threshold=threshold)
    if is_held:  # what is held stays, however little it is
        restoration.take(pieces, least=0.0, is_held=True)
    else:
        restoration.take(pieces)
    placed = np.zeros(len(pricing.classes))
    for k, _, part in pieces:
        placed[k] += part
    restoration.left.extend((k, 1 - part) for k, part in enumerate(placed.tolist()) if part < 1 - 1e-6)
    nowhere = restoration.finish()
    if is_held:
        moves = min(HELD_MOVES, sum(len(berth.loads) for berth in yard.berths.values()) // HELD_ONE_OF)
    for _ in range(1 if is_held else PASSES):
        restoration.improve(moves)
    Renewal(restoration).run(renewals)
    if nowhere:
        restoration.left.extend(restoration.make_room(nowhere))
        waiting = restoration.finish()
        if waiting and len({each.project for each in pricing.figures.pools}) > 1:
            restoration.left.extend(share_fairly(restoration, waiting))
            restoration.finish()
    return settle(view, restoration)


def held_pieces(pricing: Pricing) -> tuple[Pieces, Turns]:
    """(class, resource, part) of what the plan before assigned, where it may still be, and its turns; empty when that covers too
    little."""
    view, classes, resources = pricing.figures.view, pricing.classes, pricing.figures.resources
    if not view.snapshot.held:
        return [], {}
    class_of = {view.snapshot.works[each].id: (k, each) for k, those in enumerate(classes.members) for each in those}
    number = {offer.key: index for index, offer in enumerate(pricing.figures.offers)}
    parts: dict[tuple[int, int], float] = {}
    turns: Turns = {}
    size = [float(classes.tokens_in[k] + classes.tokens_long[k]) or 1.0 for k in range(len(classes))]
    covered = 0.0
    for held in view.snapshot.held:
        if held.work_id not in class_of or held.offer_key not in number:
            continue
        k, each = class_of[held.work_id]
        work = view.snapshot.works[each]
        tokens = work.input_tokens + max(work.output_tokens_p50, work.output_tokens_p90)
        key = (k, number[held.offer_key])
        turns[key] = held.turn
        parts[key] = parts.get(key, 0.0) + held.share_ppm / PPM * (
            tokens / size[k] if tokens else 1 / len(classes.members[k])
        )
        covered += held.share_ppm / PPM
    if covered < COVERED * len(view.snapshot.works):
        return [], {}
    ways: dict[int, list[int]] = {offer: [offer] for _, offer in parts}
    for r in range(len(pricing.figures.offers), len(resources)):
        ways.setdefault(int(resources.offer[r]), []).append(r)
    pieces = [
        (k, offer, part)
        for (k, offer), part in sorted(parts.items())
        if any(pricing.masks.may_serve(k, r) for r in ways[offer])
    ]
    return pieces, turns


def _guided(pricing: Pricing, first: Pieces, much: Counts) -> tuple[Pieces, Scarcity, blocks.Prices | None] | None:
    """(parts, prices of capacity, and what else proves a bound with them) to restore a plan from; None when HiGHS failed: the
    plan's stage then says that it is the first placement."""
    looks = much.looks[0]
    if is_guided(pricing) and len(pricing.classes) > PROGRAM_CLASSES:
        guide = by_placement(pricing, first, [2 * looks // 3] * 2)
        return guide.pieces, guide.prices.scarcity, guide.prices
    # Imported here: HiGHS is for the process that solves. The broker's own fallback does without it.
    from solver.fluid.generate import generate  # noqa: PLC0415

    try:
        fluid = generate(pricing, pricing.classes.edge_low, first=first)
    except Unsolved:
        return None
    if is_guided(pricing):
        guide = by_program(pricing, fluid.scarcity, fluid.objective, looks)
        return guide.pieces, guide.prices.scarcity, guide.prices
    used = np.flatnonzero(fluid.x > 1e-6)
    parts = [(int(fluid.columns.k[each]), int(fluid.columns.r[each]), float(fluid.x[each])) for each in used]
    return parts, fluid.scarcity, None


def _served(pricing: Pricing, draft: Draft) -> Floats:
    """Per class the part of it that the draft surely serves, whatever kind of token counts."""
    works = pricing.figures.works
    served = draft.served_all()
    found = np.ones(len(pricing.classes))
    for k, members in enumerate(pricing.classes.members):
        parts = [served.get(works[each].id, 0) for each in members]
        if min(parts) == PPM:
            continue
        ratios = []
        for tokens in (
            [works[each].input_tokens for each in members],
            [works[each].output_tokens_p50 for each in members],
            [max(works[each].output_tokens_p50, works[each].output_tokens_p90) for each in members],
        ):
            if total := sum(tokens):
                ratios.append(sum(part * each for part, each in zip(parts, tokens, strict=True)) / (PPM * total))
        found[k] = min(ratios, default=0.0)
    return found


def _nano(usd: float) -> int:
    return max(0, int(usd * (1 - BOUND_SLACK) * 1e9))
