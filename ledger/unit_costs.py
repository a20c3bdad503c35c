"""Unit costs: what a million tokens, a request and a useful response did cost. Pure; the numerator is all cost, waste included.

Token classes are disjoint: cached input is not fresh input, reasoning is not output (Langfuse #10592 and #5568 counted cached
input twice). A response is useful when it is finished and delivered, once: retries and repeats count in the cost alone.
"""

from __future__ import annotations

from dataclasses import dataclass

from ledger.money import div_half_even

_MILLION = 1_000_000


@dataclass(frozen=True, slots=True)
class Tokens:
    """Disjoint classes; their sum is what the engine's usage said."""

    fresh_input: int
    cached_input: int
    output: int
    reasoning: int

    @property
    def total(self) -> int:
        return self.fresh_input + self.cached_input + self.output + self.reasoning


@dataclass(frozen=True, slots=True)
class UnitCosts:
    """Nano-units; None where there is nothing to divide by."""

    per_million_output: int | None
    per_million_total: int | None
    per_request: int | None
    per_useful_response: int | None
    per_busy_hour: int | None


def tokens_of(*, prompt: int, cached: int, completion: int, reasoning: int = 0) -> Tokens:
    """Classes out of a usage in which cached is part of prompt and reasoning of completion. A part that says to be more than
    its whole (an engine that counts otherwise) is cut to it.

    >>> tokens_of(prompt=10, cached=4, completion=6, reasoning=1)
    Tokens(fresh_input=6, cached_input=4, output=5, reasoning=1)
    """
    cached, reasoning = min(cached, prompt), min(reasoning, completion)
    return Tokens(prompt - cached, cached, completion - reasoning, reasoning)


def unit_costs(nano: int, tokens: Tokens, *, requests: int, useful: int, busy_ms: int) -> UnitCosts:
    """What each unit did cost of `nano` in all (at least 0).

    >>> units = unit_costs(9_000, Tokens(1, 1, 1, 0), requests=3, useful=2, busy_ms=0)
    >>> units.per_million_output, units.per_request, units.per_useful_response, units.per_busy_hour
    (9000000000, 3000, 4500, None)
    """

    def each(units: int, scale: int = 1) -> int | None:
        return div_half_even(nano * scale, units) if units > 0 else None

    return UnitCosts(
        per_million_output=each(tokens.output + tokens.reasoning, _MILLION),
        per_million_total=each(tokens.total, _MILLION),
        per_request=each(requests),
        per_useful_response=each(useful),
        per_busy_hour=each(busy_ms, 3_600_000),
    )
