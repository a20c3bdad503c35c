"""How much later a run may begin and still be done in time, on the side of caution."""

from __future__ import annotations

from collections.abc import Sequence

from solver.durations import PPM, SECOND_US
from solver.types import HOUR_US, OfferView, Work
from solver.view import View

# Kept before every deadline, besides.
MARGIN_US = HOUR_US


def latest_us(view: View, offer: OfferView, machines: int, parts: Sequence[tuple[Work, int]], runs: int) -> int:
    """How much later so many machines may begin and do `runs` times the cautious work before each deadline."""
    latest, load = 7 * 24 * HOUR_US, 0
    for work, ppm in parts:
        busy = view.busy(work, offer)
        if busy is None:
            return 0
        load += runs * busy[1] * ppm // PPM + 1
        ready_us = offer.timings_of(work.model).total_s * SECOND_US
        latest = min(latest, view.due_us(work) - runs * ready_us - -(-load // machines))
    return latest - MARGIN_US
