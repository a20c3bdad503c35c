"""Speeds of pairs that nobody measured: what must fit, what must be faster, and what a config.json says."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from solver.durations import busy_both
from solver.throughput import fitted
from solver.throughput.hardware import hardware_of
from solver.throughput.model_facts import from_config, known_model
from solver.throughput.roofline import Shape, room_for
from solver.types import Throughput, Work

CHAT = Shape(294, 294)
LLAMA_70B = {
    "hidden_size": 8192, "num_hidden_layers": 80, "num_attention_heads": 64, "num_key_value_heads": 8,
    "intermediate_size": 28672, "vocab_size": 128256, "torch_dtype": "bfloat16",
}  # fmt: skip
DEEPSEEK = {
    "hidden_size": 7168, "num_hidden_layers": 61, "num_attention_heads": 128, "num_key_value_heads": 128,
    "intermediate_size": 18432, "moe_intermediate_size": 2048, "vocab_size": 129280, "n_routed_experts": 256,
    "n_shared_experts": 1, "num_experts_per_tok": 8, "first_k_dense_replace": 3, "kv_lora_rank": 512, "q_lora_rank": 1536,
    "qk_rope_head_dim": 64, "qk_nope_head_dim": 128, "v_head_dim": 128, "quantization_config": {"quant_method": "fp8"},
}  # fmt: skip


@pytest.mark.parametrize(("config", "name"), [(LLAMA_70B, "llama-3.1-70b"), (DEEPSEEK, "deepseek-v3")])
def test_a_config_json_says_what_the_table_says(config, name):
    read, known = from_config("x", config), known_model(name)
    assert read.params_b == pytest.approx(known.params_b, rel=0.02)
    assert read.active_b == pytest.approx(known.active_b, rel=0.05)
    assert (read.kv_elements, read.experts, read.native) == (known.kv_elements, known.experts, known.native)


@pytest.mark.parametrize("field", ["hidden_size", "num_hidden_layers", "vocab_size"])
def test_a_config_json_without_a_field_is_refused_by_its_name(field):
    with pytest.raises(ValueError, match=field):
        from_config("x", {name: value for name, value in LLAMA_70B.items() if name != field})


@pytest.mark.parametrize(
    ("model", "precision", "gpu", "tensor_parallel", "measured"),
    [  # MLPerf v4.1 offline per accelerator, closed division
        ("llama2-70b", "fp8", "h100-sxm", 1, 3018), ("llama2-70b", "fp8", "h200", 1, 3920),
        ("llama2-70b", "fp8", "h100-pcie", 1, 1160),
    ],
)  # fmt: skip
def test_what_was_measured_is_met_within_a_factor_of_two(model, precision, gpu, tensor_parallel, measured):
    """The accuracy beyond the sample is `python -m benchmarks.throughput`; this holds the units."""
    told = fitted.estimate(known_model(model), precision, hardware_of(gpu), tensor_parallel, CHAT, 64)
    output = CHAT.output_tokens / (CHAT.input_tokens / told.input_per_s + CHAT.output_tokens / told.output_per_s)
    assert measured / 2 < output < measured * 2


def test_weights_that_do_not_fit_are_refused_and_with_more_accelerators_they_fit():
    facts, h100 = known_model("llama-3.1-70b"), hardware_of("h100")
    with pytest.raises(ValueError, match="does not fit"):
        fitted.estimate(facts, "bf16", h100, 1, CHAT)
    assert fitted.estimate(facts, "bf16", h100, 4, CHAT).output_per_s > 0
    assert room_for(facts, "fp8", h100, 2, CHAT) > room_for(facts, "bf16", h100, 2, CHAT)


@given(st.integers(1, 4096), st.integers(1, 4096), st.sampled_from(["bf16", "fp8", "awq"]))
def test_an_estimate_is_positive_and_its_cautious_part_less_than_it(inputs, outputs, precision):
    told = fitted.estimate(known_model("llama-3.1-8b"), precision, hardware_of("l40s"), 1, Shape(inputs, outputs))
    assert told.input_per_s > 0 < told.output_per_s
    assert 0 < told.cautious < 1


def test_deadlines_count_on_the_cautious_part_of_an_estimate_and_costs_on_the_whole():
    work = Work(
        id="w", project="p", model="m", precision="bf16", endpoint="e", lines=1, input_tokens=1000, output_tokens_p50=500,
        output_tokens_p90=500, deadline_us=1, max_nano=None, priority=0, policy_hash="h",
    )  # fmt: skip
    rate = Throughput(model="m", precision="bf16", accelerator="a", input_per_s=100, output_per_s=10, source="roofline")
    sure, unsure = busy_both(work, rate, 1_000_000), busy_both(work, fast := _unsure(rate), 1_000_000)
    assert fast.cautious == 0.5
    assert (unsure[0], unsure[1]) == (sure[0], 2 * sure[1])


def _unsure(rate):
    return Throughput(**{f: getattr(rate, f) for f in rate.__struct_fields__} | {"cautious": 0.5})
