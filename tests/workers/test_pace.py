"""Requests and tokens a minute: never more than the server allows in any minute, and not much less."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from workers.agent.pace import Pace


def sent_at(pace: Pace, tokens: int, characters: int, until_s: float) -> list[float]:
    """When requests go that are answered at once, each with so many tokens."""
    now, found = 0.0, list[float]()
    while now < until_s:
        wait = pace.wait_s(now)
        if wait > 0:
            now += wait + 0.001
            continue
        pace.sent(now, characters)
        pace.answered(tokens, characters)
        found.append(now)
    return found


@given(st.integers(20, 600), st.integers(1_000, 200_000), st.integers(50, 2_000), st.integers(1, 4_000))
@settings(max_examples=60, deadline=None)
def test_no_minute_has_more_than_its_limits(requests: int, tokens: int, each: int, characters: int) -> None:
    times = sent_at(Pace(requests, tokens), each, characters, 150)
    # an allowance of a tenth of a minute, one request that is begun when it is empty, and none whose size is not known yet
    for start in (0.0, 30.0, 90.0):
        count = sum(start <= at < start + 60 for at in times)
        assert count <= requests * 1.1 + 2
        assert count * each <= tokens * 1.1 + 2 * max(each, characters)
    later = sum(60 <= at < 120 for at in times)
    assert later >= 0.9 * min(requests, tokens / each) - 2, "it waits longer than the limits ask for"


def test_without_limits_nothing_waits() -> None:
    pace = Pace()
    assert all(pace.wait_s(0.0) <= 0 for _ in range(10) if pace.sent(0.0, 10**6) is None)
