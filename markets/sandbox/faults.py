"""Faults on order: the ways in which real providers fail, armed over the admin API, used up one by one.

They are kept in memory only: a restarted sandbox is a healthy one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, get_args

FaultName = Literal[
    "create_error_before",  # 500, nothing was created
    "create_error_after",  # 500 although it was created
    "create_hang_before",  # no answer for `seconds`, nothing was created
    "create_hang_after",  # no answer for `seconds` although it was created
    "rate_limited",  # 429 to whatever is asked next
    "sold_out",  # the next offer that is asked for has just been sold out
    "price_moved",  # the next offer that is asked for has just become a quarter dearer
    "partial_list",  # a list of instances lacks its last entry, though `total` counts it
    "list_error",  # 500 to a list of instances
    "slow_release",  # a release takes effect after `seconds`
]
NAMES: tuple[FaultName, ...] = get_args(FaultName)


@dataclass(frozen=True, slots=True)
class Fault:
    """`times` more uses; `seconds` for those that take time."""

    name: FaultName
    times: int = 1
    seconds: float = 30


class Faults:
    """What is armed now."""

    def __init__(self) -> None:
        self._armed: list[Fault] = []

    def arm(self, fault: Fault) -> None:
        self._armed.append(fault)

    def clear(self) -> None:
        self._armed.clear()

    def armed(self) -> tuple[Fault, ...]:
        return tuple(self._armed)

    def take(self, name: FaultName) -> Fault | None:
        """Use up one `name`, if armed."""
        for position, fault in enumerate(self._armed):
            if fault.name == name:
                left = replace(fault, times=fault.times - 1)
                self._armed[position : position + 1] = [left] if left.times > 0 else []
                return fault
        return None
