"""Reading what engines say of themselves."""

from __future__ import annotations

from workers.agent.metrics import read_metrics
from workers.engines import llamacpp, vllm

# as vLLM 0.32 and llama.cpp print them
VLLM = """# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="a model {with} braces"} 12.0
vllm:num_requests_running{engine="1",model_name="a model {with} braces"} 3.0
vllm:num_requests_waiting{engine="0",model_name="m"} 2.0
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.25
vllm:kv_cache_usage_perc{engine="1",model_name="m"} 0.75
vllm:prompt_tokens_total{engine="0",model_name="m"} 1.5e+06
vllm:prompt_tokens_created{engine="0",model_name="m"} 1.7e+09
vllm:generation_tokens_total{engine="0",model_name="m"} NaN
vllm:num_preemptions_total{engine="0",model_name="m"} 4.0 1700000000
"""
LLAMACPP = """# HELP llamacpp:requests_processing Number of requests processing.
llamacpp:requests_processing 3
llamacpp:requests_deferred 0
llamacpp:prompt_tokens_total 20
llamacpp:tokens_predicted_total 8
"""


def test_vllms_numbers_are_added_over_its_engines_and_shares_are_not() -> None:
    assert read_metrics(VLLM, vllm.METRICS) == {
        "running": 15.0,
        "waiting": 2.0,
        "kv_usage": 0.75,
        "prompt_tokens_total": 1.5e6,
        "preemptions_total": 4.0,
    }


def test_llamacpps_numbers_are_found() -> None:
    assert read_metrics(LLAMACPP, llamacpp.METRICS) == {
        "running": 3.0,
        "waiting": 0.0,
        "prompt_tokens_total": 20.0,
        "generation_tokens_total": 8.0,
    }
