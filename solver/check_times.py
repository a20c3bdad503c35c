"""How long the checker says that things take, and what seconds cost: the contract's formulas in whole microseconds and nano-USD.

Part of the checker: it shares no code with the solver, which reckons the same for itself.
"""

from __future__ import annotations

import math
from fractions import Fraction

from solver.types import OfferView, Throughput, Work

WHOLE = 1_000_000
SECOND = 1_000_000


def start_up(offer: OfferView, model: str) -> int:
    timings = offer.start_up.get(model, offer.timings)
    return (timings.boot_s + timings.load_s) * SECOND


def slow_down(offer: OfferView, model: str) -> int:
    """Daly's factor for free checkpoints in millionths: e^(λR)·(e^(λτ) − 1)/(λτ), τ = 60 s; unknown: 0.3/h for spot."""
    assumed = 0.3 if offer.pricing in ("spot", "bid") else 0.0
    per_second = (assumed if offer.hazard is None else offer.hazard) / 3600.0
    in_flight = min(per_second * 60.0, 20.0)
    if in_flight <= 0.0:
        return WHOLE
    again = min(per_second * (start_up(offer, model) // SECOND), 20.0)
    return math.ceil(math.exp(again) * math.expm1(in_flight) / in_flight * WHOLE)


def paced(speed: Throughput, at_once: int | None) -> float:
    """Output with so many requests at once, as a part of that at the most: B/B₀ ÷ (f + (1 − f)·B/B₀)."""
    if at_once is None or speed.sequences < 1:
        return 1.0
    part = at_once / speed.sequences
    return min(1.0, part / (speed.fixed + (1.0 - speed.fixed) * part))


def p95_s(work: Work, speed: Throughput, at_once: int) -> float:
    """Seconds of a request as long as it may be, at the cautious speed: prompts that are read meanwhile, and a step a token."""
    lines, out = max(1, work.lines), max(1, work.output_tokens_p50)
    step = (speed.fixed * speed.sequences + (1.0 - speed.fixed) * at_once) / speed.output_per_s
    mean = at_once * work.input_tokens / lines / speed.input_per_s + work.output_tokens_p50 / lines * step
    cautious = speed.cautious if 0 < speed.cautious < 1 else 1.0
    return mean * max(work.output_tokens_p50, work.output_tokens_p90) / out * speed.slower / cautious


def whole_busy(tokens_in: int, tokens_out: int, in_per_s: float, out_per_s: float, slow: int) -> int:
    """Microseconds of the whole work on one instance; rates count in whole millionths of a token per second."""
    pico = 0
    for tokens, rate in ((tokens_in, in_per_s), (tokens_out, out_per_s)):
        pico += tokens * 10**18 // max(1, round(rate * 1_000_000))
    return max(1, math.ceil(Fraction(pico * slow, 10**12)))


def ends(groups: list[tuple[int, int]], load: Fraction) -> int:
    """When instances that get ready at these times have done `load` together: Σ (T − ready)⁺ = load, in whole microseconds."""
    work, machines = math.ceil(load), 0
    if work <= 0:
        return 0
    for number, (ready, count) in enumerate(groups):
        machines += count
        work += ready * count
        level = -(-work // machines)
        if number + 1 == len(groups) or level <= groups[number + 1][0]:
            return level
    raise AssertionError("a place without instances has no end; callers look first")


def seconds(micros: int) -> int:
    return -(-micros // SECOND)


def hourly(price_nano: int, seconds: int) -> int:
    """Nano-USD of these seconds, rounded half to even."""
    return round(Fraction(price_nano * seconds, 3600))
