"""How a zone's availability goes on, fitted to its recent record: a Markov chain over (up or down, for how long already).

A zone that has just come back is likelier to go again than one that has been there for hours (real traces show both kinds of
spell), so the age of a spell is part of the state, in steps. How likely a spell ends falls with a power of its age: two numbers
each for up and down, which a week of forty spells can tell, where every step counted by itself cannot; what was counted
corrects the curve where there is much of it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from solver.spot.world import Flags, Floats

# How much the curve counts in each step of the age, beside what was counted there: so many ticks.
CURVE_TICKS = 60.0
# A transition counts half as much as one that is later by this much; in a chain without ages, which has to make up for them by
# what was of late, the second.
HALF_LIFE_S, AGELESS_HALF_LIFE_S = 7 * 86_400.0, 0.7 * 86_400.0
# The age at which such a chain reads the curve.
AGELESS_S = 2 * 3600.0
# Without history: (log of ends an hour in a spell ten minutes old, exponent of the age), of downs and of ups, and how sure that
# is (standard deviations). Fitted to eleven V100 and K80 zones recorded for NSDI 2024, rounded.
PRIOR_CURVES = ((0.6, -0.4), (0.5, -0.45))
PRIOR_SD = (1.0, 0.3)
BASE_S = 600.0
# Steps of Fisher scoring, each of 1.5 at most: it stands still to seven digits after eight on all recorded zones.
SCORING_STEPS = 8


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
    """Fit to one zone's record, the oldest tick first."""
    half = len(edges_s) + 1
    half_life_s = HALF_LIFE_S if edges_s else AGELESS_HALF_LIFE_S
    old_s = ages(record, tick_s)[:-1]
    steps = np.searchsorted(np.array(edges_s), old_s)
    weights: Floats = np.exp2(-np.arange(len(old_s) - 1, -1, -1) * tick_s / half_life_s)
    is_end = record[1:] != record[:-1]
    step = np.zeros((2 * half, 2 * half))
    for up in (0, 1):
        mine = record[:-1] == bool(up)
        curve = _curve(old_s[mine], is_end[mine], weights[mine], tick_s, PRIOR_CURVES[up])
        ticks = np.bincount(steps[mine], weights[mine], half)
        ends = np.bincount(steps[mine], weights[mine] * is_end[mine], half)
        for age in range(half):
            typical_s, older = _step(age, edges_s, tick_s)
            end = (ends[age] + CURVE_TICKS * _ends(curve, np.array([typical_s]), tick_s)[0]) / (
                ticks[age] + CURVE_TICKS
            )
            row = step[up * half + age]
            row[(1 - up) * half] += end
            row[up * half + age] += (1 - end) * (1 - older)
            row[up * half + min(age + 1, half - 1)] += (1 - end) * older
    return Chain(edges_s, tick_s, step)


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


def _step(age: int, edges_s: tuple[float, ...], tick_s: float) -> tuple[float, float]:
    """The middle of the ages that are in this step, and the part of them that a tick moves on to the next."""
    low_s = edges_s[age - 1] if age else 0.0
    if age == len(edges_s):
        return 2 * low_s if age else AGELESS_S, 0.0
    high_s = edges_s[age]
    first_s = (math.floor(low_s / tick_s) + 1) * tick_s
    last_s = max(first_s, math.floor(high_s / tick_s) * tick_s)
    return math.sqrt(first_s * last_s), min(1.0, tick_s / (high_s - low_s))


def _ends(curve: Floats, old_s: Floats, tick_s: float) -> Floats:
    """Probability that a spell of this age ends within a tick."""
    ends: Floats = -np.expm1(-_rates(curve, np.log(old_s / BASE_S), tick_s))
    return ends


def _rates(curve: Floats, logs: Floats, tick_s: float) -> Floats:
    """Expected ends a tick; never none, and never so many that a probability is one."""
    rates: Floats = np.exp(np.clip(curve[0] + curve[1] * logs + math.log(tick_s / 3600), -16.0, 3.0))
    return rates


def _curve(old_s: Floats, is_end: Flags, weights: Floats, tick_s: float, prior: tuple[float, float]) -> Floats:
    """The likeliest power of the age, by Fisher scoring of a complementary log-log regression with a normal prior."""
    mean, precision = np.array(prior), np.diag(1 / np.square(PRIOR_SD))
    by = np.column_stack([np.ones(len(old_s)), np.log(old_s / BASE_S)])
    curve: Floats = mean.copy()
    for _ in range(SCORING_STEPS):
        rates = _rates(curve, by[:, 1], tick_s)
        odds = rates / np.expm1(rates)
        slope = by.T @ (weights * np.where(is_end, odds, -rates)) - precision @ (curve - mean)
        bend = (by * (weights * rates * odds)[:, None]).T @ by + precision
        curve = curve + np.clip(np.linalg.solve(bend, slope), -1.5, 1.5)
    return curve
