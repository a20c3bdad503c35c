"""How long work keeps one instance busy, interruptions included. Integer microseconds, rounded up."""

from __future__ import annotations

import math

from solver.types import OfferView, Throughput, Work

PPM = 1_000_000
SECOND_US = 1_000_000

# Interruptions per hour of a pool of which nothing is known: the middle of what real V100 spot zones showed (0.1 to 1.4).
UNKNOWN_SPOT_HAZARD = 0.3
# The work in flight when an instance is taken: a request of this length is lost, what is committed stays.
REQUEST_S = 60.0
# e^20: such a pool never finishes anything; the cap keeps the arithmetic finite.
_MOST = 20.0


def slow_down_ppm(offer: OfferView, model: str) -> int:
    """Instance time needed per useful time, in millionths (at least 1,000,000).

    Daly's expected time with free checkpoints: φ = e^(λR)·(e^(λτ) − 1)/(λτ), λ the hazard, R the model's start-up that
    each interruption repeats, τ the request in flight. A hazard of None is `UNKNOWN_SPOT_HAZARD` for spot and bid, else 0.
    """
    hazard = offer.hazard
    if hazard is None:
        hazard = UNKNOWN_SPOT_HAZARD if offer.pricing in ("spot", "bid") else 0.0
    per_second = hazard / 3600.0
    restart = min(per_second * offer.timings_of(model).total_s, _MOST)
    request = min(per_second * REQUEST_S, _MOST)
    if request <= 0.0:
        return PPM
    return math.ceil(math.exp(restart) * math.expm1(request) / request * PPM)


def busy_us(input_tokens: int, output_tokens: int, rate: Throughput, slow_ppm: int) -> int:
    """Microseconds that one whole instance needs for these tokens; never 0, since even no tokens take a request."""
    prefill = input_tokens * SECOND_US * PPM * PPM // rate_micro(rate.input_per_s)
    decode = output_tokens * SECOND_US * PPM * PPM // rate_micro(rate.output_per_s)
    return max(1, -(-(prefill + decode) * slow_ppm // (PPM * PPM)))


def rate_micro(per_s: float) -> int:
    """A rate in integer millionths of tokens per second, at least one."""
    return max(1, round(per_s * PPM))


def busy_both(work: Work, rate: Throughput, slow_ppm: int) -> tuple[int, int]:
    """Expected (p50) and cautious (p90, at the rate's cautious part) microseconds of the whole work on one instance."""
    expected = busy_us(work.input_tokens, work.output_tokens_p50, rate, slow_ppm)
    cautious = busy_us(work.input_tokens, max(work.output_tokens_p50, work.output_tokens_p90), rate, slow_ppm)
    if 0 < rate.cautious < 1:
        cautious = math.ceil(cautious / rate.cautious)
    return expected, cautious
