"""Measured speed as the planner uses it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.control.convert import throughput_of
from broker.speeds import estimated_speeds, too_small
from markets.offer import Accelerator
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


def gpu(name: str, memory_mib: int = 0, count: int = 1) -> Accelerator:
    return Accelerator(kind="nvidia", name=name, memory_mib=memory_mib, count=count)


LLAMA = ModelProfile(id="llama", engine="vllm", weights="meta-llama/Llama-3.1-8B-Instruct", launches=("container",))


def test_a_known_model_has_a_speed_on_gpus_that_nobody_gave_one_for() -> None:
    speeds = estimated_speeds(LLAMA, [gpu("h100-sxm"), gpu("l40s"), gpu("something-new")], [])
    assert set(speeds) == {"h100-sxm", "l40s"}
    assert speeds["h100-sxm"].output_per_s > speeds["l40s"].output_per_s
    rates = {rate.accelerator: rate for rate in throughput_of(LLAMA, {}, speeds)}
    assert rates["l40s/container"].source == "roofline"
    assert rates["l40s/container"].cautious < 1


def test_what_the_operator_gives_and_what_was_measured_go_before_the_estimate() -> None:
    given_one = replace(LLAMA, tokens_per_s={"l40s": (100.0, 10.0)})
    speeds = estimated_speeds(given_one, [gpu("h100-sxm"), gpu("l40s")], [])
    assert set(speeds) == {"h100-sxm"}
    measured = {("llama", "auto", "h100-sxm/container"): (1_000_000, 1_000_000, 1000.0)}
    rates = {rate.accelerator: rate for rate in throughput_of(given_one, measured, speeds)}
    assert rates["l40s/container"].source == "profile"
    assert (rates["h100-sxm/container"].source, rates["h100-sxm/container"].cautious) == ("measured", 1.0)


def test_a_first_shard_that_ran_at_half_the_estimate_lowers_it_elsewhere_too() -> None:
    speeds = estimated_speeds(LLAMA, [gpu("h100-sxm"), gpu("l40s")], [])
    h100 = speeds["h100-sxm"]
    slow = {
        ("llama", "auto", "h100-sxm/container"): (1000, 1000, 2 * (1000 / h100.input_per_s + 1000 / h100.output_per_s))
    }
    rates = {rate.accelerator: rate for rate in throughput_of(LLAMA, slow, speeds)}
    assert rates["h100-sxm/container"].output_per_s == pytest.approx(h100.output_per_s / 2)
    assert rates["l40s/container"].output_per_s == pytest.approx(speeds["l40s"].output_per_s / 2**0.5)


def test_a_model_that_does_not_fit_says_so_and_has_no_speed() -> None:
    large = replace(LLAMA, weights="meta-llama/Llama-3.1-70B-Instruct")
    assert "141 GB of weights" in (too_small(large, gpu("h100-sxm")) or "")
    assert not estimated_speeds(large, [gpu("h100-sxm")], [])
    assert too_small(LLAMA, gpu("a100", 40_960)) is None


def test_facts_come_from_the_config_json_beside_the_weights(tmp_path: Path) -> None:
    config = {"hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 32, "vocab_size": 50_000}
    (tmp_path / "config.json").write_text(json.dumps(config))
    mine = ModelProfile(id="mine", engine="vllm", weights=str(tmp_path), launches=("container",))
    assert set(estimated_speeds(mine, [gpu("l4")], [])) == {"l4"}
    assert not estimated_speeds(replace(mine, weights="nobody/knows-it"), [gpu("l4")], [])
