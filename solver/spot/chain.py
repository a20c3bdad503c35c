"""How a zone's availability goes on, fitted to its recent record: a Markov chain over (up or down, for how long already).

A zone that has just come back is likelier to go again than one that has been there for hours (real traces show both kinds of
spell), so the age of a spell is part of the state, in a few steps. With the age the chain is a phase-type fit of the spells'
lengths.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from solver.spot.world import Flags, Floats

# How much the two-state chain, without ages, counts in each row: so many ticks.
PRIOR_TICKS = 20.0
# A transition counts half as much as one that is later by this much: pools change within a day.
HALF_LIFE_S = 0.7 * 86_400.0
# What a zone without history does: as the middle of the V100 zones recorded for NSDI 2024, about an hour down, 3 h up.
PRIOR_UP_S, PRIOR_DOWN_S = 3 * 3600.0, 3600.0
PRIOR_S = 6 * 3600.0


@dataclass(frozen=True, slots=True)
class Chain:
    """`step[i, j]` is the probability of state j a tick after state i. States: down by age, then up by age.

    `edges_s` are the ages at which a spell comes into its next state.
    """

    edges_s: tuple[float, ...]
    tick_s: float
    step: Floats

    @property
    def states(self) -> int:
        return 2 * (len(self.edges_s) + 1)

    def state(self, *, is_up: bool, age_s: float) -> int:
        """The state of a zone that has been as it is for `age_s`."""
        return _state(is_up, age_s, self.edges_s)

    def is_up(self, state: int) -> bool:
        return state > len(self.edges_s)


def fit(record: Flags, tick_s: float, edges_s: tuple[float, ...]) -> Chain:
    """Count the transitions of one zone's record, the oldest tick first."""
    states = 2 * (len(edges_s) + 1)
    counts = np.zeros((states, states))
    labels = [_state(bool(up), age_s, edges_s) for up, age_s in zip(record, ages(record, tick_s), strict=True)]
    weights: Floats = np.exp2(-np.arange(len(record) - 2, -1, -1) * tick_s / HALF_LIFE_S)
    np.add.at(counts, (labels[:-1], labels[1:]), weights)
    return Chain(edges_s, tick_s, _rows(counts, _flips(record, weights, tick_s), edges_s, tick_s))


def ages(record: Flags, tick_s: float) -> Floats:
    """How long the spell lasts already at each tick, that tick included."""
    found = np.empty(len(record))
    age = 0.0
    for index, up in enumerate(record):
        age = age + tick_s if index and up == record[index - 1] else tick_s
        found[index] = age
    return found


def coarse(record: Flags, factor: int) -> Flags:
    """The record in ticks of `factor` times the length: up where the last of each was."""
    return record[factor - 1 :: factor]


def _state(is_up: bool, age_s: float, edges_s: Sequence[float]) -> int:
    step = sum(age_s > edge for edge in edges_s)
    return step + (len(edges_s) + 1 if is_up else 0)


def _flips(record: Flags, weights: Floats, tick_s: float) -> tuple[float, float]:
    """Probability a tick of going down when up and of coming up when down, without ages."""
    before, after = record[:-1], record[1:]
    up, down = weights[before].sum(), weights[~before].sum()
    lost, found = weights[before & ~after].sum(), weights[~before & after].sum()
    prior = PRIOR_S / tick_s
    return (
        float((lost + prior * tick_s / PRIOR_UP_S) / (up + prior)),
        float((found + prior * tick_s / PRIOR_DOWN_S) / (down + prior)),
    )


def _rows(counts: Floats, flips: tuple[float, float], edges_s: tuple[float, ...], tick_s: float) -> Floats:
    """Counted transitions with the two-state chain as so many ticks more, in rows that sum to one."""
    half = len(edges_s) + 1
    widths_s = np.diff((0.0, *edges_s))
    lost, found = min(1.0, flips[0]), min(1.0, flips[1])
    prior = np.zeros_like(counts)
    for age in range(half):
        older = min(1.0, tick_s / widths_s[age]) if age < half - 1 else 0.0
        for base, other, flip in ((0, half, found), (half, 0, lost)):
            prior[base + age, other] += flip
            prior[base + age, base + age] += (1 - flip) * (1 - older)
            prior[base + age, base + min(age + 1, half - 1)] += (1 - flip) * older
    weighted = counts + PRIOR_TICKS * prior
    rows: Floats = weighted / weighted.sum(axis=1, keepdims=True)
    return rows
