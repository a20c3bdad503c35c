"""When to begin, and how often machines are taken: the deadline is never risked, and evidence counts for what it is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.control.hazards import gather, learned_hazard, pool_of
from solver.preemption import PRIOR_HOURS, Seen, hazard
from solver.when import DAY_US, HOUR_US, Held, begin_later

MONDAY = 4 * DAY_US + 2800 * DAY_US  # a Monday, midnight UTC


def daily(prices: dict[int, int | None], days: int = 14) -> list[Held]:
    """Each day the same: from which hour on which price."""
    hours = sorted(prices)
    ends = [*hours[1:], 24]
    return [
        Held(MONDAY - day * DAY_US + a * HOUR_US, MONDAY - day * DAY_US + b * HOUR_US, prices[a])
        for day in range(days, -1, -1)
        for a, b in zip(hours, ends, strict=True)
    ]


def test_a_run_waits_for_the_cheap_hours_of_the_night() -> None:
    now = MONDAY + 12 * HOUR_US
    later = begin_later(now, now + 24 * HOUR_US, 2 * HOUR_US, 3 * HOUR_US, daily({0: 100, 8: 200, 20: 100}))
    assert later is not None
    assert later.begin_us == MONDAY + 20 * HOUR_US
    assert later.saving == pytest.approx(0.5)


def test_flat_prices_and_too_few_days_say_now() -> None:
    now = MONDAY + 12 * HOUR_US
    assert begin_later(now, now + 24 * HOUR_US, HOUR_US, HOUR_US, daily({0: 100})) is None
    assert begin_later(now, now + 24 * HOUR_US, HOUR_US, HOUR_US, daily({0: 100, 8: 200, 20: 100}, days=3)) is None


def test_an_hour_in_which_the_pool_was_often_gone_is_not_waited_for() -> None:
    now = MONDAY + 12 * HOUR_US
    record = daily({0: None, 8: 200, 20: 100, 21: None})
    later = begin_later(now, now + 30 * HOUR_US, 2 * HOUR_US, 2 * HOUR_US, record)
    assert later is not None
    assert later.begin_us == MONDAY + 19 * HOUR_US, "at 20:00 the pool is gone before the run is through"


@given(slack=st.integers(0, 72), run=st.integers(1, 20), longer=st.integers(0, 20))
def test_the_deadline_is_never_risked(slack: int, run: int, longer: int) -> None:
    now = MONDAY + 12 * HOUR_US
    cautious = (run + longer) * HOUR_US
    deadline = now + cautious + slack * HOUR_US
    later = begin_later(now, deadline, run * HOUR_US, cautious, daily({0: 10, 8: 200, 20: 100}))
    assert later is None or later.begin_us + cautious + HOUR_US <= deadline


def test_what_was_seen_moves_the_hazard_from_its_prior() -> None:
    assert hazard(0.3, Seen()).mean == pytest.approx(0.3)
    calm, rough = hazard(0.3, Seen(240.0)), hazard(0.3, Seen(240.0, tuple(i * 7200.0 for i in range(240))))
    assert calm.mean < 0.05
    assert rough.mean > 0.9
    assert all(each.high > each.mean for each in (calm, rough))


def test_machines_taken_together_are_one_event_and_not_ten() -> None:
    """16-node traces lose 7 to 11 at once."""
    together = hazard(0.3, Seen(240.0, tuple(5.0 * i for i in range(10))))
    apart = hazard(0.3, Seen(240.0, tuple(7200.0 * i for i in range(10))))
    assert together.bulk == 10
    assert abs(together.mean - 0.3) < abs(apart.mean - 0.3)
    assert PRIOR_HOURS > 0


def test_losses_of_our_own_rentals_are_counted_by_pool() -> None:
    spot, other = "aws/us-east-1/us-east-1a/p5/h100/8/spot", "aws/us-west-2/us-west-2a/p5/h100/8/spot"
    hour = 3_600_000_000
    pools = gather([(spot, 0, hour, "preempted"), (spot, 0, 99 * hour, "released"), (other, 0, None, None)], 50 * hour)
    assert pools[pool_of(spot)] == Seen(100.0, (3600.0,))
    seen = learned_hazard(pools, spot, "spot", None)
    assert seen is not None and 0 < seen < 0.3
    assert learned_hazard(pools, spot.replace("spot", "on_demand"), "on_demand", None) is None
    assert learned_hazard({}, spot, "spot", 0.7) == 0.7
