"""What a worker does with the time that an interruption notice leaves it. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

_NONE = timedelta(0)


@dataclass(frozen=True, slots=True)
class Drain:
    """A plan, in durations from now. `cut_part_at` is when the last part must be cut to be committed in time."""

    accept_new_lines: bool
    wait_for_in_flight: timedelta
    cut_part_at: timedelta


def plan_drain(notice: timedelta, in_flight_p95: timedelta, upload_p95: timedelta) -> Drain:
    """Finish what can be finished, but always keep time to cut and commit one part, and to try that twice.

    >>> seconds = lambda n: timedelta(seconds=n)
    >>> plan_drain(notice=seconds(120), in_flight_p95=seconds(40), upload_p95=seconds(5)).wait_for_in_flight
    datetime.timedelta(seconds=40)
    >>> plan_drain(notice=seconds(5), in_flight_p95=seconds(40), upload_p95=seconds(3)).wait_for_in_flight
    datetime.timedelta(0)
    """
    left_for_lines = max(_NONE, notice - 2 * upload_p95)
    wait = min(in_flight_p95, left_for_lines)
    return Drain(accept_new_lines=False, wait_for_in_flight=wait, cut_part_at=wait)
