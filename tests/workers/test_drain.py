"""What a machine does with its last seconds."""

from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.agent.drain import plan_drain


def seconds(count: float) -> timedelta:
    return timedelta(seconds=count)


@pytest.mark.parametrize(
    ("notice", "in_flight_p95", "upload_p95", "wait"),
    [
        (120, 40, 5, 40),  # AWS spot: everything in flight can finish
        (30, 40, 5, 20),  # GCP spot: some can, and two uploads still fit
        (5, 40, 3, 0),  # five seconds: commit what is there, wait for nothing
        (0, 40, 3, 0),  # no time at all
        (-3, 40, 3, 0),  # the moment has passed
    ],
)
def test_the_wait_leaves_time_for_the_last_part(notice: int, in_flight_p95: int, upload_p95: int, wait: int) -> None:
    plan = plan_drain(seconds(notice), seconds(in_flight_p95), seconds(upload_p95))
    assert plan.wait_for_in_flight == seconds(wait)
    assert plan.cut_part_at == seconds(wait)
    assert not plan.accept_new_lines


durations = st.timedeltas(timedelta(0), timedelta(hours=1))


@given(notice=durations, in_flight_p95=durations, upload_p95=durations)
def test_the_last_part_can_always_be_tried_twice(
    notice: timedelta, in_flight_p95: timedelta, upload_p95: timedelta
) -> None:
    """Either two uploads fit after the cut, or the cut is now; and nobody waits longer than is of use."""
    plan = plan_drain(notice, in_flight_p95, upload_p95)
    assert plan.cut_part_at == timedelta(0) or plan.cut_part_at + 2 * upload_p95 <= notice
    assert timedelta(0) <= plan.wait_for_in_flight <= in_flight_p95
