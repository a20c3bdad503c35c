"""The concurrency controller: load in, limit out."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.agent.concurrency import Load, steer


@pytest.mark.parametrize(
    ("limit", "load", "expected"),
    [
        # the queue is empty although all that may be sent is sent: the batch has holes, grow by a quarter
        (16, Load(in_flight=16, running=16, waiting=0), 20),
        # a few wait behind the running ones: this is what saturation looks like, stay
        (20, Load(in_flight=20, running=16, waiting=4), 20),
        # more wait than run: they only age; down to one running batch's worth of waiting
        (64, Load(in_flight=64, running=16, waiting=48), 32),
        # never more than a halving at once, whatever the engine says
        (64, Load(in_flight=64, running=2, waiting=62), 32),
        # the limit is not what leaves holes: there are no more lines to send
        (16, Load(in_flight=3, running=3, waiting=0), 16),
        # the sample is older than most of the requests
        (32, Load(in_flight=32, running=16, waiting=0, kv_usage=0.1), 32),
        # or than all of them
        (16, Load(in_flight=16, running=0, waiting=0), 16),
        # the engine ran out of cache memory and computes things twice
        (50, Load(in_flight=50, running=50, waiting=0, preempted=1), 40),
        # nobody waits and the cache is less than half full: twice as many fit
        (16, Load(in_flight=16, running=16, waiting=0, kv_usage=0.2), 32),
        # half full: by a quarter, or the next step preempts
        (16, Load(in_flight=16, running=16, waiting=0, kv_usage=0.5), 20),
        # the cache is full: the next line more would preempt
        (50, Load(in_flight=50, running=50, waiting=0, kv_usage=0.99), 50),
        # refused (429, 503): half
        (50, Load(in_flight=50, running=10, waiting=0, refused=3), 25),
        # refused with less in flight than the limit: half of what was really there
        (50, Load(in_flight=8, refused=3), 4),
        # an engine without metrics stays at its start and comes back to it
        (8, Load(in_flight=8), 8),
        (3, Load(in_flight=3), 4),
        # the most is the most
        (100, Load(in_flight=100, running=100, waiting=0), 100),
        # and one is the least
        (1, Load(in_flight=1, running=1, waiting=0, preempted=5), 1),
    ],
)
def test_the_limit_follows_the_engines_queue(limit: int, load: Load, expected: int) -> None:
    assert steer(limit, load, start=8, maximum=100) == expected


numbers = st.none() | st.floats(0, 1e6)
loads = st.builds(
    Load,
    in_flight=st.integers(0, 2000),
    running=numbers,
    waiting=numbers,
    kv_usage=st.none() | st.floats(0, 1),
    preempted=st.floats(0, 100),
    refused=st.integers(0, 100),
)


@given(limit=st.integers(1, 1000), load=loads, start=st.integers(1, 1000))
def test_the_limit_stays_between_one_and_the_maximum(limit: int, load: Load, start: int) -> None:
    """1 ≤ steer(limit) ≤ maximum for every load, and one step never more than halves or grows by a quarter."""
    after = steer(limit, load, start=min(start, 1000), maximum=1000)
    assert 1 <= after <= 1000
    assert after <= limit + max(1, -(-limit // 4))
    if not load.refused:
        assert after >= limit // 2


def test_a_steady_engine_is_found_from_far_below_and_far_above() -> None:
    """An engine with 64 slots: from 4 and from 1000 the limit settles where a tenth to all of it waits."""
    for first in (4, 1000):
        limit = first
        for _ in range(60):
            running = min(limit, 64)
            load = Load(in_flight=limit, running=running, waiting=limit - running)
            limit = steer(limit, load, start=8, maximum=1024)
        assert 64 * 1.1 <= limit <= 64 * 2
