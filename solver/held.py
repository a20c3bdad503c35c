"""What a plan gives the next one to go on from."""

from __future__ import annotations

from solver.types import Held, Plan


def held_of(plan: Plan) -> tuple[Held, ...]:
    """What the plan assigned, with the variant that was chosen where there was a choice."""
    chosen = {each.work_id: each for each in plan.variants}
    return tuple(
        Held(
            work_id=each.work_id,
            offer_key=each.offer_key,
            share_ppm=each.share_ppm,
            turn=each.turn,
            model=chosen[each.work_id].model if each.work_id in chosen else "",
            precision=chosen[each.work_id].precision if each.work_id in chosen else "",
        )
        for each in plan.assignments
    )
