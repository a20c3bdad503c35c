"""When a market is asked again: its own interval, and longer after failures. Pure.

A failed poll doubles the wait up to an hour; from the fifth failure on the circuit is open, and each further poll is a probe.
A market that says how long to wait is waited for; one that refuses the log-in is not asked more often than every ten
minutes, because nothing but a person changes that.
"""

from __future__ import annotations

from typing import Literal

from markets.errors import NotAuthorized, RateLimited

SECOND_US = 1_000_000
LONGEST_S = 3600.0
REFUSED_S = 600.0
OPEN_AFTER = 5
# The same moment for all would be a burst at each provider and at our database.
JITTER = 0.1

Circuit = Literal["closed", "failing", "open"]


def wait_s(every_s: float, failures: int, failure: Exception) -> float:
    """Seconds for which a market is left alone after `failures` in a row, the last of which is `failure`.

    Half an interval less than the wait, because the loop's own tick decides and must not be missed by a moment; never less than
    the market itself asked for.

    >>> [wait_s(60, failures, TimeoutError()) for failures in (1, 2, 3, 9)]
    [30.0, 90.0, 210.0, 3570.0]
    >>> wait_s(60, 1, RateLimited(retry_after_s=90)), wait_s(60, 1, NotAuthorized())
    (90.0, 570.0)
    """
    waited_s = min(max(LONGEST_S, every_s), every_s * 2 ** min(failures - 1, 16))
    if isinstance(failure, NotAuthorized):
        waited_s = max(waited_s, REFUSED_S)
    asked_s = failure.retry_after_s or 0.0 if isinstance(failure, RateLimited) else 0.0
    return float(max(waited_s - every_s / 2, min(asked_s, 24 * LONGEST_S)))


def circuit(failures: int) -> Circuit:
    """How a market stands.

    >>> circuit(0), circuit(1), circuit(5)
    ('closed', 'failing', 'open')
    """
    if failures == 0:
        return "closed"
    return "open" if failures >= OPEN_AFTER else "failing"


def is_due(again_us: int | None, now_us: int) -> bool:
    return again_us is None or again_us <= now_us


def oldest_s(every_s: float) -> int:
    """Seconds after which a price of a market with this interval is too old to plan with.

    Three missed polls: one may fail by chance, three are a market that no longer answers.
    """
    return max(30, round(every_s * 3))
