"""How long requests took, as counts by bucket: what parts of an output file report, and what can be added up. Pure.

A bucket is 5 % wide, so that a percentile read from counts is 2.5 % off at most, however many are added.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

WIDTH = 1.05
# An hour and more is one bucket: nothing waits for an answer as long as that.
LAST = 310
_NAME = "took_"
# How many requests at once they were timed at: a lease keeps its number when a later plan says another.
AT_ONCE = "took_at_once"
_BUCKETS = {f"{_NAME}{bucket}": bucket for bucket in range(LAST + 1)}


def counter_of(seconds: float) -> str:
    """The counter that a request of so long adds to.

    >>> counter_of(0.001), counter_of(1.0), counter_of(0.0)
    ('took_0', 'took_142', 'took_0')
    """
    bucket = math.ceil(math.log(max(seconds * 1000, 1.0), WIDTH) - 1e-9)
    return f"{_NAME}{min(max(0, bucket), LAST)}"


def counts_of(counters: Mapping[str, int]) -> dict[int, int]:
    """Requests by bucket, out of a part's counters; what no agent of ours tells is left out.

    >>> counts_of({"took_142": 3, "requests": 9, "took_99999": 1})
    {142: 3}
    """
    return {_BUCKETS[name]: count for name, count in counters.items() if name in _BUCKETS and count > 0}


def p95_ms(counts: Mapping[int, int]) -> int | None:
    """The middle of the bucket that 95 of 100 requests do not pass; None without any.

    >>> p95_ms({142: 95, 190: 5}), p95_ms({142: 94, 190: 6}), p95_ms({})
    (996, 10360, None)
    """
    left = math.ceil(0.95 * sum(counts.values()))
    for bucket in sorted(counts):
        left -= counts[bucket]
        if left <= 0:
            return round(WIDTH ** (bucket - 0.5)) if bucket else 1
    return None
