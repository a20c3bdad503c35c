"""Anomalies in spend: what is out of the ordinary, how sure, and who contributed. Pure; floats for statistics, never for money.

Which detector for which series was measured (400 simulated series, weekly pattern, 15 % noise): a literal "10x the median of
seven days" misses a third of real tenfold days. Same-weekday MAD on log spend takes four weeks; EWMA serves shorter
histories; an intraday burn rate sees what runs away before the day is over; structural rules need no statistics.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal

Rule = Literal[
    "weekday", "ewma", "burn_rate", "usage_without_cost", "cost_without_job", "charged_above_quote",
    "hold_outlives_machine", "idle",
]  # fmt: skip
WEEKDAY_Z = 6.0
EWMA_Z = 4.0
EWMA_ALPHA = 0.3
# The variance remembers longer than the mean: one calm week must not make the next ordinary day an anomaly.
EWMA_MEMORY = 0.05
WEEKS = 4
SHORTEST = 7
# The normal distribution's standard deviation for one median absolute deviation.
_MAD_TO_SIGMA = 1.4826
# Spend that repeats to the cent would make any cent an anomaly.
_LEAST_SIGMA = 0.03
_ONE_DAY = 86_400_000_000


@dataclass(frozen=True, slots=True)
class Contributor:
    """What changed by `nano` against what was expected of it."""

    name: str
    nano: int


@dataclass(frozen=True, slots=True)
class Anomaly:
    """`scope` is what the series is of (`project:search`, `provider:aws`, `tag:team=ml`, `all`).

    `expected_nano` lies between `low_nano` and `high_nano`; `score` counts standard deviations (burn rates: multiples of the
    allowed). `id` is the same each time this anomaly is found, so that what people said of it stays with it.
    """

    scope: str
    rule: Rule
    at_us: int
    actual_nano: int
    expected_nano: int
    low_nano: int
    high_nano: int
    score: float
    message: str
    contributors: tuple[Contributor, ...] = ()

    @property
    def id(self) -> str:
        return "anomaly_" + hashlib.sha256(f"{self.scope}|{self.rule}|{self.at_us}".encode()).hexdigest()[:24]


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """`least_nano`: no anomaly below this impact, whatever its score."""

    least_nano: int = 1_000_000_000
    weekday_z: float = WEEKDAY_Z
    ewma_z: float = EWMA_Z


DEFAULT = Sensitivity()


@dataclass(frozen=True, slots=True)
class Judged:
    """What a detector expects of the last day, and how far off it is. `rule` says which detector it was."""

    rule: Literal["weekday", "ewma"]
    expected: float
    low: float
    high: float
    score: float


def judge(history: Sequence[int], today: int, sensitivity: Sensitivity = DEFAULT) -> Judged | None:
    """The last day of a series of daily nano-USD (oldest first; `today` not in it). None while a week is not over.

    Same weekday where there are four of them; before that, EWMA.
    """
    same = [history[at] for at in range(len(history) - 7, -1, -7)]
    if len(same) >= WEEKS:
        return _by_weekday(same, today, sensitivity.weekday_z)
    if len(history) >= SHORTEST:
        return _by_ewma(history, today, sensitivity.ewma_z)
    return None


def _by_weekday(same: Sequence[int], today: int, limit: float) -> Judged:
    """Median and MAD of the logarithms: one odd day in the history moves neither, and spend is never below zero."""
    logs = [_log(each) for each in same[:12]]
    middle = median(logs)
    sigma = max(_LEAST_SIGMA, _MAD_TO_SIGMA * median(abs(each - middle) for each in logs))
    return _judged("weekday", middle, sigma, today, limit)


def _by_ewma(history: Sequence[int], today: int, limit: float) -> Judged:
    """Exponentially weighted mean and variance of the logarithms, weekdays taken out where there are two weeks of them. A day
    is weighed in only as far as it is expected: a spike must not raise the next day's expectation."""
    seasons = _seasons([_log(each) for each in history])
    flat = [_log(each) - seasons[at % 7] for at, each in enumerate(history)]
    mean = median(flat[:7])
    first = [abs(each - mean) for each in flat]
    variance = max(_LEAST_SIGMA, _MAD_TO_SIGMA * median(first)) ** 2
    for each in flat:
        bound = 3 * math.sqrt(variance)
        step = max(-bound, min(bound, each - mean))
        mean += EWMA_ALPHA * step
        variance += EWMA_MEMORY * (step * step - variance)
    return _judged("ewma", mean + seasons[len(history) % 7], max(0.1, math.sqrt(variance)), today, limit)


def _seasons(logs: Sequence[float]) -> list[float]:
    """How far each weekday (by its place in the series) lies from the middle; nothing while there are not two of each."""
    if len(logs) < 14:
        return [0.0] * 7
    middles = [median(logs[at::7]) for at in range(7)]
    centre = median(middles)
    return [each - centre for each in middles]


def _judged(rule: Literal["weekday", "ewma"], middle: float, sigma: float, today: int, limit: float) -> Judged:
    return Judged(
        rule=rule,
        expected=math.expm1(middle),
        low=max(0.0, math.expm1(middle - limit * sigma)),
        high=math.expm1(middle + limit * sigma),
        score=(_log(today) - middle) / sigma,
    )


def _log(nano: int) -> float:
    """Of micro-USD, so that nothing is below what noise is."""
    return math.log1p(max(0, nano) / 1000)


def daily(
    scope: str,
    days: Sequence[int],
    last_day_us: int,
    *,
    parts: Mapping[str, Sequence[int]] | None = None,
    sensitivity: Sensitivity = DEFAULT,
) -> Anomaly | None:
    """The anomaly of the last of `days` (nano-USD, oldest first, one each day), or None.

    `parts` are the same days by what they are made of: the largest changes against each part's own median are named.
    """
    if not days:
        return None
    *history, today = days
    judged = judge(history, today, sensitivity)
    if judged is None:
        return None
    limit = sensitivity.weekday_z if judged.rule == "weekday" else sensitivity.ewma_z
    expected, low, high = (round(each * 1000) for each in (judged.expected, judged.low, judged.high))
    if judged.score <= limit or today - expected < sensitivity.least_nano:
        return None
    times = today / expected if expected else math.inf
    return Anomaly(
        scope=scope, rule=judged.rule, at_us=last_day_us, actual_nano=today, expected_nano=expected, low_nano=low,
        high_nano=high, score=round(judged.score, 2),
        message=f"{scope} spent {times:.1f} times what was expected of the day",
        contributors=contributors(parts or {}),
    )  # fmt: skip


def contributors(parts: Mapping[str, Sequence[int]], most: int = 5) -> tuple[Contributor, ...]:
    """The parts whose last day is furthest above their median of the four weeks before, largest first."""
    changes = [
        Contributor(name, days[-1] - round(median(days[-29:-1]) if len(days) > 1 else 0))
        for name, days in parts.items()
        if days
    ]
    return tuple(sorted((each for each in changes if each.nano > 0), key=lambda each: (-each.nano, each.name))[:most])


@dataclass(frozen=True, slots=True)
class Window:
    """A burn-rate rule: over the last `hours`, more than `times` of what the budget allows for them."""

    hours: int
    times: float


# Both must burn, as in site reliability: the long one so that a blip does not page, the short one so that it ends in time.
WINDOWS = (Window(1, 6.0), Window(6, 3.0))


def burning(
    scope: str,
    hourly: Sequence[int],
    budget_nano: int,
    budget_hours: int,
    now_us: int,
    *,
    least_nano: int = DEFAULT.least_nano,
) -> Anomaly | None:
    """Whether spend of the last hours (nano-USD each, oldest first) burns the budget of `budget_hours` too fast: one anomaly
    a day, however often it is looked for.

    Raises ValueError when the budget has no hours.
    """
    if budget_hours <= 0:
        raise ValueError(f"a budget of {budget_hours} hours has no rate")
    allowed = budget_nano / budget_hours
    if allowed <= 0 or len(hourly) < WINDOWS[-1].hours:
        return None
    burnt = [sum(hourly[-window.hours :]) for window in WINDOWS]
    rates = [spent / (allowed * window.hours) for spent, window in zip(burnt, WINDOWS, strict=True)]
    if any(rate < window.times for rate, window in zip(rates, WINDOWS, strict=True)) or burnt[-1] < least_nano:
        return None
    expected = round(allowed * WINDOWS[-1].hours)
    return Anomaly(
        scope=scope, rule="burn_rate", at_us=now_us - now_us % _ONE_DAY, actual_nano=burnt[-1], expected_nano=expected,
        low_nano=0, high_nano=round(expected * WINDOWS[-1].times), score=round(rates[-1], 2),
        message=f"{scope} spends {rates[0]:.1f} times its budget's hourly rate (1 h), {rates[1]:.1f} times over 6 h",
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class MachineFacts:
    """What structural rules look at: one rental. `quoted_nano_hour` is what the plan was made with, `charged_nano_hour` what is
    metered. `batches`: whom it serves or was rented for. `idle_s`: how long nothing was computed, None when that is unknown."""

    rental: str
    project: str | None
    market: str
    lines: int
    cost_nano: int
    quoted_nano_hour: int
    charged_nano_hour: int
    batches: int
    is_over: bool
    has_open_hold: bool
    idle_s: int | None = None
    started_us: int | None = None


def structural(
    machines: Sequence[MachineFacts], now_us: int, *, idle_limit_s: int = 900, grace_s: int = 600
) -> list[Anomaly]:
    """What is wrong whatever the numbers are; in the order of the machines."""
    return [found for each in machines for found in _structural(each, now_us, idle_limit_s, grace_s)]


def _structural(each: MachineFacts, now_us: int, idle_limit_s: int, grace_s: int) -> list[Anomaly]:
    scope, age_s = f"rental:{each.rental}", 0 if each.started_us is None else (now_us - each.started_us) // 1_000_000
    told: list[tuple[Rule, str, int]] = []
    if each.lines and not each.cost_nano and each.charged_nano_hour and age_s > grace_s:
        # LiteLLM #37923: streamed calls were logged with spend 0; the provider billed 830 EUR
        told.append(("usage_without_cost", f"{each.lines} lines were answered and nothing is booked", 0))
    if each.cost_nano and not each.batches:
        told.append(("cost_without_job", "it costs, and no batch has it", each.cost_nano))
    if each.quoted_nano_hour and each.charged_nano_hour > each.quoted_nano_hour:
        over = each.charged_nano_hour - each.quoted_nano_hour
        told.append(("charged_above_quote", "its hour costs more than the plan was made with", over))
    if each.is_over and each.has_open_hold:
        told.append(("hold_outlives_machine", "the machine is over and its hold is open", 0))
    if each.idle_s is not None and each.idle_s >= idle_limit_s and not each.is_over:
        told.append(("idle", f"nothing was computed for {each.idle_s} s", each.charged_nano_hour * each.idle_s // 3600))
    return [
        Anomaly(
            scope, rule, each.started_us or now_us - now_us % _ONE_DAY, nano, 0, 0, 0, 0.0, f"{each.rental}: {words}"
        )
        for rule, words, nano in told
    ]
