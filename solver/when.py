"""Whether to begin later: where a pool was cheaper at another hour on past days, and the deadline leaves room for it. Pure.

Days are compared with themselves: of each past day, the mean price over a run that begins at the candidate hour beside that over
one that begins at the hour it is now. What all days share (the pool became dearer since) falls out, and the spread of the
differences is the uncertainty. Only days of the same kind, weekday or weekend, count.
"""

from __future__ import annotations

import itertools
import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

HOUR_US = 3_600_000_000
DAY_US = 24 * HOUR_US
# Fewer days say nothing; the saving must be sure (one-sided 95 %) and worth the waiting.
FEWEST_DAYS = 5
SURE_Z = 1.645
WORTH = 0.02
# Of past days, in which part of the run's time the pool must have had room.
AVAILABLE = 0.95


@dataclass(frozen=True, slots=True)
class Held:
    """What held in [from_us, to_us): nano-USD an hour, None where there was nothing to rent."""

    from_us: int
    to_us: int
    price_nano: int | None


@dataclass(frozen=True, slots=True)
class Later:
    """Begin at `begin_us`: a run should cost `saving` less (a part of its price now), 95 % sure of `sure`, by `days` days."""

    begin_us: int
    saving: float
    sure: float
    days: int


def begin_later(
    now_us: int, deadline_us: int, run_us: int, cautious_us: int, record: Sequence[Held], margin_us: int = HOUR_US
) -> Later | None:
    """The whole hour from now at which to begin instead; None: now. `run_us` is how long a machine is needed, expected,
    `cautious_us` how long at most, start-up included; the deadline keeps `margin_us` beyond that, whatever a later hour saves."""
    if run_us <= 0 or not record:
        return None
    latest_us = deadline_us - max(run_us, cautious_us) - margin_us
    best: Later | None = None
    for hours in range(1, 24 * 7):
        begin_us = now_us + hours * HOUR_US
        if begin_us > latest_us:
            break
        found = _compare(now_us, begin_us, run_us, record)
        if found is not None and found.sure >= WORTH and (best is None or found.sure > best.sure):
            best = found
    return best


def _compare(now_us: int, begin_us: int, run_us: int, record: Sequence[Held]) -> Later | None:
    """The saving of beginning then, from past days of the same kind."""
    savings = []
    for back in range(1, 1 + (now_us - record[0].from_us) // DAY_US):
        shift_us = back * DAY_US
        if _is_weekend(begin_us - shift_us) != _is_weekend(begin_us) or begin_us + run_us - shift_us > now_us:
            continue
        then, here = (_mean(record, at - shift_us, run_us) for at in (begin_us, now_us))
        if then is not None and here:
            savings.append(1 - then / here)
    if len(savings) < FEWEST_DAYS:
        return None
    mean = sum(savings) / len(savings)
    spread = math.sqrt(sum((each - mean) ** 2 for each in savings) / (len(savings) - 1))
    return Later(begin_us, mean, mean - SURE_Z * spread / math.sqrt(len(savings)), len(savings))


def _mean(record: Sequence[Held], from_us: int, run_us: int) -> float | None:
    """Time-weighted price over a run; None where the pool had no room for too much of it, or was not known."""
    total = priced = 0.0
    first = max(0, bisect_right(record, from_us, key=lambda held: held.from_us) - 1)
    for held in itertools.islice(record, first, None):
        if held.from_us >= from_us + run_us:
            break
        length = min(held.to_us, from_us + run_us) - max(held.from_us, from_us)
        if length > 0 and held.price_nano is not None:
            priced += length
            total += length * held.price_nano
    return total / priced if priced >= AVAILABLE * run_us else None


def _is_weekend(at_us: int) -> bool:
    # 1970-01-01 was a Thursday
    return (at_us // DAY_US + 3) % 7 >= 5
