"""How often a pool's machines are taken, from what was seen of it: a Gamma posterior; losses in bulk count as one event.

A pool is what one market gives at one place for one price model. Its hazard λ per machine-hour has the prior Gamma(λ₀·h₀, h₀): λ₀
is what the market says or the usual, h₀ the hours that this is worth. n losses in h hours make it Gamma(λ₀·h₀ + n, h₀ + h).
Machines of a pool are taken together (16-node traces lose 7 to 11 at once), so n losses in b bulks are no n independent events:
both n and h count b/n.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

# What the prior is worth, in machine-hours, and how near two losses must be to be one event.
PRIOR_HOURS = 24.0
BULK_S = 600.0
# The 80 % quantile of a normal distribution: what deadlines may be planned with.
HIGH_Z = 0.8416


@dataclass(frozen=True, slots=True)
class Seen:
    """What was seen of one pool: hours that its machines ran, and when (seconds) one was taken."""

    hours: float = 0.0
    lost_at_s: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Hazard:
    """Losses per machine-hour: the mean is for costs, `high` (80 %) for deadlines; `bulk` machines are lost at once (mean)."""

    mean: float
    high: float
    bulk: float


def hazard(prior_per_hour: float, seen: Seen) -> Hazard:
    """The posterior. Without anything seen its mean is the prior's.

    >>> hazard(0.3, Seen()).mean, round(hazard(0.3, Seen(hours=240.0)).mean, 4)
    (0.3, 0.0273)
    """
    sizes = bulks(seen.lost_at_s)
    weight = len(sizes) / len(seen.lost_at_s) if sizes else 1.0
    shape = prior_per_hour * PRIOR_HOURS + len(seen.lost_at_s) * weight
    rate = PRIOR_HOURS + seen.hours * weight
    return Hazard(shape / rate, quantile(shape, HIGH_Z) / rate, sum(sizes) / len(sizes) if sizes else 1.0)


def bulks(lost_at_s: Iterable[float]) -> Sequence[int]:
    """Sizes of the groups of losses that follow each other within `BULK_S`.

    >>> bulks([0, 10, 20, 5000])
    [3, 1]
    """
    sizes: list[int] = []
    before = -math.inf
    for at in sorted(lost_at_s):
        if at - before > BULK_S:
            sizes.append(0)
        sizes[-1] += 1
        before = at
    return sizes


def quantile(shape: float, z: float) -> float:
    """Of Gamma(shape, 1), by Wilson and Hilferty (1931): exact to a few percent for shapes from 0.3 on; 0 for shape 0."""
    if shape <= 0:
        return 0.0
    return shape * max(0.0, 1 - 1 / (9 * shape) + z / (3 * math.sqrt(shape))) ** 3
