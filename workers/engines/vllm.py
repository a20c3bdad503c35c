"""vLLM's OpenAI server, `vllm serve`, out of the image or environment that the agent runs in.

Always on loopback, never in development mode (its extra routes can put the server to sleep or run code). What the table
writes is parsed by vLLM 0.32's own parser in `.ci/vllm`, and held against its recorded options in `make test`
(`tests/workers/vllm_options.json`). The TPU and Neuron editions are the same server with less of it; they are unverified
against the live hardware (docs.vllm.ai/projects/tpu, awsdocs-neuron "vLLM on Neuron").
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from workers.engine_profile import Adapter, EngineProfile, KvOffload, Speculation
from workers.engines.server import Option, Server, switch
from workers.profile import ModelProfile

METRICS = {
    "running": "vllm:num_requests_running",
    "waiting": "vllm:num_requests_waiting",
    "prompt_tokens_total": "vllm:prompt_tokens_total",
    "generation_tokens_total": "vllm:generation_tokens_total",
    "preemptions_total": "vllm:num_preemptions_total",
    "kv_usage": "vllm:kv_cache_usage_perc",
}
LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
# methods whose proposals come from a second set of weights
_WITH_DRAFT = frozenset({"draft_model", "eagle", "eagle3", "medusa", "mlp_speculator"})


def _speculation(value: Speculation) -> Sequence[str]:
    config: dict[str, Any] = {"method": value.method, "num_speculative_tokens": value.tokens}
    config |= {"model": value.model} if value.model else {}
    config |= {"prompt_lookup_max": value.lookup, "prompt_lookup_min": 1} if value.lookup else {}
    return ["--speculative-config", json.dumps(config)]


def _offload(value: KvOffload) -> Sequence[str]:
    """LMCache inside the engine's process; vLLM's own `--kv-offloading-backend lmcache` wants a server beside it."""
    if value.backend == "native":
        return ["--kv-offloading-size", str(value.gib)]
    return ["--kv-transfer-config", json.dumps({"kv_connector": "LMCacheConnectorV1", "kv_role": "kv_both"})]


def _offload_env(value: KvOffload) -> dict[str, str]:
    if value.backend == "native":
        return {}
    return {"LMCACHE_LOCAL_CPU": "True", "LMCACHE_MAX_LOCAL_CPU_SIZE": str(value.gib)}


def _adapter(value: Adapter) -> Sequence[str]:
    """The adapter has the model's public name, so that lines need no other; the base is `NAME.base`."""
    return ["--enable-lora", "--max-lora-rank", str(value.rank), "--lora-modules", "{name}=" + value.weights]


def _refused(options: EngineProfile, profile: ModelProfile) -> Iterator[str]:
    """Combinations that vLLM refuses only after the machine was paid for (found in 0.32's sources)."""
    if options.quantization not in (None, "compressed-tensors") and options.dtype == "float32":
        yield (
            f"quantization {options.quantization!r} computes in bfloat16 or float16, not in dtype 'float32'; "
            "leave dtype out"
        )
    spoken = options.speculation
    if spoken is not None and spoken.method in _WITH_DRAFT and not spoken.model:
        yield f"speculation.method {spoken.method!r} needs speculation.model, the weights that make the proposals"
    if spoken is not None and spoken.lookup is not None and spoken.method != "ngram":
        yield f"speculation.lookup is for method 'ngram', not {spoken.method!r}; leave it out"
    if spoken is not None and options.batch_invariant:
        yield "batch_invariant and speculation exclude each other: proposals depend on the batch; leave one out"
    if options.adapter is not None and options.adapter.rank not in LORA_RANKS:
        yield f"adapter.rank is {options.adapter.rank}; vLLM has room for {', '.join(map(str, LORA_RANKS))}: take the next"
    tokens, seqs = options.max_num_batched_tokens, options.max_num_seqs
    if tokens is not None and seqs is not None and tokens < seqs:
        yield f"max_num_batched_tokens {tokens} is less than max_num_seqs {seqs}: each sequence takes a token a step"
    if tokens is not None and tokens < profile.context and options.chunked_prefill is False:
        yield (
            f"max_num_batched_tokens {tokens} is less than context {profile.context}, and chunked_prefill is off: "
            "a long prompt would fit into no step; raise one or leave the other on"
        )


OPTIONS = {
    "tensor_parallel": Option("--tensor-parallel-size", flags=("-tp",)),
    "pipeline_parallel": Option("--pipeline-parallel-size", flags=("-pp",)),
    "dtype": Option("--dtype"),
    "quantization": Option(
        "--quantization",
        names={
            "fp8": "fp8", "awq": "awq", "gptq": "gptq", "nvfp4": "modelopt_fp4", "compressed-tensors": "compressed-tensors",
        },
        flags=("-q",),
    ),
    "kv_cache_dtype": Option("--kv-cache-dtype"),
    "prefix_caching": switch("--enable-prefix-caching", "--no-enable-prefix-caching"),
    "chunked_prefill": switch("--enable-chunked-prefill", "--no-enable-chunked-prefill"),
    "max_num_seqs": Option("--max-num-seqs"),
    "max_num_batched_tokens": Option("--max-num-batched-tokens"),
    "gpu_memory_utilization": Option("--gpu-memory-utilization", flags=("--device-memory-utilization",)),
    "eager": switch("--enforce-eager"),
    "speculation": Option(words=_speculation, flags=("--speculative-config", "-sc")),
    "kv_offload": Option(
        words=_offload,
        env=_offload_env,
        flags=("--kv-offloading-size", "--kv-offloading-backend", "--kv-transfer-config"),
    ),
    "adapter": Option(words=_adapter, flags=("--enable-lora", "--lora-modules", "--max-lora-rank")),
    "chat_template": Option("--chat-template"),
    "structured_outputs": Option(
        words=lambda value: ["--structured-outputs-config", json.dumps({"backend": value})],
        names={name: name for name in ("auto", "xgrammar", "guidance", "outlines", "lm-format-enforcer")},
        flags=("--structured-outputs-config",),
    ),
    "batch_invariant": Option(words=lambda value: [], env=lambda value: {"VLLM_BATCH_INVARIANT": "1"}),
}  # fmt: skip

VLLM = Server(
    title="vLLM",
    image="vllm/vllm-openai",
    runs_on=frozenset({"nvidia", "amd", "gaudi", "none"}),
    command=(
        *("vllm", "serve", "{weights}", "--served-model-name", "{name}", "--host", "{host}", "--port", "{port}"),
        *("--max-model-len", "{context}", "--uvicorn-log-level", "warning"),
    ),
    options=OPTIONS,
    reserved=("--host", "--port", "--served-model-name", "--api-key", "--uds", "--allowed-media-domains"),
    forbidden_env={"VLLM_SERVER_DEV_MODE": "opens control routes"},
    revision_flag="--revision",
    media_flag="--allowed-media-domains",
    # A media host that a project trusts must not send the engine on to another (vLLM follows redirects by default).
    env={"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "VLLM_MEDIA_URL_ALLOW_REDIRECTS": "0"},
    metrics_path="/metrics",
    metrics=METRICS,
    phases={
        "download": r"Time spent downloading weights for .*: ([0-9.]+) seconds",
        "load": r"Loading weights took ([0-9.]+) seconds",
        "warm_up": r"init engine \(profile, create kv cache, warmup model\) took ([0-9.]+) s",
    },
    refusals=_refused,
    # vLLM's own default of --max-num-seqs for a server: what it cannot run yet waits in its queue, and costs nothing but
    # age. An engine that starts with fewer has holes in its batch for seconds (64: 0.84x of run-batch on 120 lines).
    first_guess=256,
    # vLLM's own run-batch keeps at least this many in flight; the driver steers below it.
    most_in_flight=1024,
)


def _without(*names: str) -> dict[str, Option]:
    return {name: option for name, option in OPTIONS.items() if name not in names}


_ON_TPU = ("awq", "fp8", "compressed-tensors")
VLLM_TPU = replace(
    VLLM,
    title="vLLM TPU",
    image="vllm/vllm-tpu",
    runs_on=frozenset({"tpu"}),
    options=_without("kv_offload", "batch_invariant", "pipeline_parallel")
    | {"quantization": Option("--quantization", names={name: name for name in _ON_TPU})},
)
VLLM_NEURON = replace(
    VLLM,
    title="vLLM Neuron",
    image="public.ecr.aws/neuron/pytorch-inference-vllm-neuronx",
    runs_on=frozenset({"trainium"}),
    # compiled for fixed shapes: quantisation and the cache's format are the checkpoint's, chosen when it is compiled
    options=_without(
        "kv_offload", "batch_invariant", "quantization", "kv_cache_dtype", "eager", "pipeline_parallel", "adapter"
    ),
)
