"""What a market gives back by its own published terms when it takes a machine away. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from markets.own_account import provider_of

# A spot machine that the market interrupts within its first seconds is not charged at all.
# aws: "Billing for interrupted Spot Instances", EC2 User Guide (Linux and Windows; the interruption must be EC2's own).
_FREE_IF_INTERRUPTED_S: Mapping[str, int] = {"aws": 3600}


def free_if_interrupted_s(market: str) -> int:
    """For how long after its start an interruption by the market (also at an account of a project's own) makes a spot machine
    free; 0: never."""
    return _FREE_IF_INTERRUPTED_S.get(provider_of(market), 0)


def is_free(market: str, pricing: str, *, started_us: int, ended_us: int, end_reason: str | None) -> bool:
    """Whether the market charges nothing for a rental that has ended, by its word for the end.

    >>> [is_free("aws", "spot", started_us=0, ended_us=s * 1_000_000, end_reason="preempted") for s in (3599, 3600)]
    [True, False]
    >>> is_free("aws", "spot", started_us=0, ended_us=1, end_reason="released")
    False
    >>> is_free("aws~acme", "spot", started_us=0, ended_us=1, end_reason="preempted")
    True
    """
    is_early = ended_us - started_us < free_if_interrupted_s(market) * 1_000_000
    return pricing == "spot" and end_reason == "preempted" and is_early
