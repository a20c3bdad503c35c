"""Measured speed as the planner uses it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.control.convert import throughput_of
from workers.profile import ModelProfile

PROFILE = ModelProfile(id="m", engine="url", base_url="http://127.0.0.1:9", tokens_per_s={"cpu": (1000, 10)})
TOKENS = st.integers(1, 10**9)


@given(TOKENS, TOKENS, st.floats(5, 10**6))
def test_what_was_measured_planned_again_takes_the_time_it_took(inputs: int, outputs: int, busy_s: float) -> None:
    """Input and output were each given the whole busy time: quotes doubled as soon as anything was measured."""
    key = (PROFILE.id, PROFILE.precision, f"cpu/{PROFILE.launches[0]}")
    rate = throughput_of(PROFILE, {key: (inputs, outputs, busy_s)})[0]
    assert rate.source == "measured"
    assert inputs / rate.input_per_s + outputs / rate.output_per_s == pytest.approx(busy_s)


def test_without_a_measurement_the_profiles_estimate_is_used() -> None:
    rate = throughput_of(PROFILE, {})[0]
    assert (rate.input_per_s, rate.output_per_s, rate.source) == (1000, 10, "profile")
