"""The breaker of a budget: what may still be rented, by how much of its limit is committed. Pure.

Holds are taken before money is spent, so more than the limit is reached only by what no hold foresaw: prices that moved, rates,
late charges, and what ran before the limit was set.

    closed → throttled (100 %): no new machines; what runs goes on
    any → open (110 %): what runs commits what it has and stops
    open, throttled → half_open, when the limit was raised or a new month began: one machine at a time
    half_open → closed, when one went well
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

State = Literal["closed", "throttled", "open", "half_open"]
THRESHOLDS = (50, 80, 100)
_OPENS_AT = 110  # percent of the limit
_PERCENT = 100


@dataclass(frozen=True, slots=True)
class Use:
    """Nano-units of a budget: what was booked in its window, what open holds set aside, and its limit (at least 0)."""

    booked_nano: int
    held_nano: int
    limit_nano: int

    @property
    def committed_nano(self) -> int:
        return self.booked_nano + self.held_nano

    @property
    def percent(self) -> int:
        """Whole percent, rounded down; of a limit of 0 everything is too much."""
        if self.limit_nano <= 0:
            return 0 if self.committed_nano <= 0 else 1000
        return max(0, self.committed_nano * _PERCENT // self.limit_nano)


def step(state: State, use: Use, *, is_relieved: bool, went_well: bool) -> State:
    """The state after a look. `is_relieved`: since the state began the limit was raised, or a new month began. `went_well`:
    since then a machine has ended.

    >>> step("closed", Use(100, 9, 100), is_relieved=False, went_well=False)
    'throttled'
    >>> step("throttled", Use(110, 0, 100), is_relieved=False, went_well=False)
    'open'
    >>> step("open", Use(90, 0, 100), is_relieved=False, went_well=True)
    'open'
    >>> step("open", Use(50, 0, 100), is_relieved=True, went_well=False)
    'half_open'
    >>> step("half_open", Use(50, 10, 100), is_relieved=True, went_well=True)
    'closed'
    """
    is_over = use.committed_nano * _PERCENT >= use.limit_nano * _OPENS_AT and use.committed_nano > 0
    if is_over or (state == "open" and not is_relieved):
        return "open"
    is_used_up = use.committed_nano >= use.limit_nano and use.committed_nano > 0
    if state == "closed" or (state == "throttled" and not is_relieved):
        # throttled and not used up any more: what was held came back, and nothing of it was spent
        return "throttled" if is_used_up else "closed"
    return "closed" if state == "half_open" and went_well and not is_used_up else "half_open"


def refusal(state: State, use: Use, *, asked_nano: int, is_running: bool = False) -> str | None:
    """Why so much more may not be committed, or None: in words for after the budget's name. `is_running`: it is
    for a machine that runs already.

    >>> refusal("closed", Use(40, 30, 100), asked_nano=30)
    >>> refusal("closed", Use(40, 30, 100), asked_nano=31)
    'has {left} of {limit} left'
    >>> refusal("half_open", Use(0, 1, 100), asked_nano=1)
    'lets one machine at a time try, and one is running'
    """
    if state == "open":
        return "stopped at {percent} % of {limit}; raise it, or wait for the next window"
    if state == "throttled":
        return "is used up ({percent} % of {limit}); nothing new starts"
    if state == "half_open" and use.held_nano > 0 and not is_running:
        return "lets one machine at a time try, and one is running"
    if use.committed_nano + asked_nano > use.limit_nano:
        return "has {left} of {limit} left"
    return None


def due_thresholds(use: Use, told: frozenset[int], thresholds: tuple[int, ...] = THRESHOLDS) -> list[int]:
    """The thresholds that are reached and were not told of yet.

    >>> due_thresholds(Use(85, 0, 100), frozenset({50}))
    [80]
    """
    if use.limit_nano <= 0 and use.committed_nano <= 0:
        return []
    return [each for each in thresholds if use.committed_nano * _PERCENT >= use.limit_nano * each and each not in told]
