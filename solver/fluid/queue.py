"""The whole way of a large queue: classes, first placement, program, instances, works. It stops on counts and gap."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
import numpy as np

from solver.durations import PPM
from solver.fluid import classes as grouping
from solver.fluid.figures import Figures, Floats
from solver.fluid.fill import fill
from solver.fluid.generate import Fluid, generate
from solver.fluid.masks import Masks
from solver.fluid.prices import Pricing, Scarcity
from solver.fluid.reasons import Reasons
from solver.fluid.restore import Restoration
from solver.fluid.settle import Exact, settle
from solver.fluid.yard import Yard
from solver.problem import Draft, Problem
from solver.relax import left_for
from solver.types import Snapshot, Unplaced
from solver.view import View

# Blocks that are looked at to be dissolved, per pass, and passes.
MOVES, PASSES = 4_000, 2
# What floats may be wrong by, taken off a bound before it leaves as integer money.
BOUND_SLACK = 1e-6


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


def plan_queue(view: View, *, is_program: bool) -> Queue:
    """Plan all works of a snapshot that has some. Without `is_program` no program is solved: the first placement, made exact."""
    figures = Figures(view)
    classes = grouping.group(figures)
    masks = Masks(figures, classes)
    pricing = Pricing(figures, classes, masks)
    pieces = fill(pricing)
    fluid = None
    if is_program and pieces:
        fluid = generate(pricing, classes.edge_low, first=pieces)
        pieces = _pieces(fluid)
    scarcity = fluid.scarcity if fluid else pricing.free()
    exact = restore(view, pricing, pieces, scarcity, passes=PASSES if fluid else 0)
    problem, draft = exact.draft()
    served = _served(pricing, draft)
    return Queue(
        problem=problem,
        draft=draft,
        bound_nano=_nano(max(pricing.bound(each, classes.edge_up, served) for each in (scarcity, pricing.free()))),
        class_bound_nano=_nano(pricing.bound(scarcity, classes.edge_low, served)),
        reasons=Reasons(masks),
        is_program=fluid is not None,
    )


def restore(
    view: View, pricing: Pricing, pieces: list[tuple[int, int, float]], scarcity: Scarcity, *, passes: int
) -> Exact:
    """Instances and exact shares from parts of classes."""
    yard = Yard(pricing)
    restoration = Restoration(pricing, yard, scarcity, pricing.classes.edge_low)
    restoration.take(pieces)
    placed = np.zeros(len(pricing.classes))
    for k, _, part in pieces:
        placed[k] += part
    restoration.left.extend((k, 1 - part) for k, part in enumerate(placed.tolist()) if part < 1 - 1e-6)
    nowhere = restoration.finish()
    for _ in range(passes):
        if restoration.improve(MOVES) < 10:
            break
    if nowhere:
        restoration.left.extend(restoration.make_room(nowhere))
        restoration.finish()
    return settle(view, restoration)


def _pieces(fluid: Fluid) -> list[tuple[int, int, float]]:
    used = np.flatnonzero(fluid.x > 1e-6)
    return [(int(fluid.columns.k[each]), int(fluid.columns.r[each]), float(fluid.x[each])) for each in used]


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
