"""Completion windows and deadlines: when a batch expires. Pure."""

from __future__ import annotations

import re

from jobs.clock import MICROSECONDS
from jobs.errors import BadBatch

_UNITS_S = {"m": 60, "h": 3600, "d": 86_400}
MAX_WINDOW_S = 30 * 86_400


def window_s(window: str) -> int:
    """Seconds of a completion window such as `90m`, `24h` or `7d`. Raises BadBatch.

    >>> window_s("24h")
    86400
    """
    match = re.fullmatch(r"([0-9]{1,6})([mhd])", window)
    if match is None:
        raise BadBatch(
            f"completion_window {window!r} is not a number of minutes, hours or days; write for example 90m, 24h or 7d",
            param="completion_window",
        )
    seconds = int(match[1]) * _UNITS_S[match[2]]
    if not 0 < seconds <= MAX_WINDOW_S:
        raise BadBatch(f"completion_window {window!r} is not between 1m and 30d", param="completion_window")
    return seconds


def expires_us(created_us: int, window: str, deadline_us: int | None) -> int:
    """The earlier of created + window and the deadline (contract C12). Raises BadBatch for a deadline that is past."""
    by_window = created_us + window_s(window) * MICROSECONDS
    if deadline_us is None:
        return by_window
    if deadline_us <= created_us:
        raise BadBatch(
            f"deadline {deadline_us // MICROSECONDS} is not after now ({created_us // MICROSECONDS}); "
            "give a later one, in unix seconds",
            param="x_broker.deadline",
        )
    return min(by_window, deadline_us)
