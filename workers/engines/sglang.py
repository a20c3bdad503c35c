"""SGLang's OpenAI server, `python3 -m sglang.launch_server`. Unverified against the live engine: it needs an accelerator.

Arguments: docs.sglang.io/advanced_features/server_arguments.html. Metric names: its production metrics page.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from workers.engine_profile import EngineProfile, KvOffload, Speculation
from workers.engines.server import Option, Server, switch
from workers.profile import ModelProfile

_ALGORITHMS = {"eagle": "EAGLE", "eagle3": "EAGLE3", "mtp": "NEXTN", "draft_model": "STANDALONE", "ngram": "NGRAM"}


def _speculation(value: Speculation) -> Sequence[str]:
    """A chain of `tokens` proposals (top-k 1): the draft's tokens are the steps and the one that is verified."""
    words = ["--speculative-algorithm", _ALGORITHMS.get(value.method, value.method.upper())]
    words += ["--speculative-num-draft-tokens", str(value.tokens + 1)]
    if value.method != "ngram":
        words += ["--speculative-num-steps", str(value.tokens), "--speculative-eagle-topk", "1"]
    return [*words, *(["--speculative-draft-model-path", value.model] if value.model else [])]


def _offload(value: KvOffload) -> Sequence[str]:
    """HiCache; its size is per accelerator's process in whole GB."""
    return ["--enable-hierarchical-cache", "--hicache-size", str(value.gib)]


def _refused(options: EngineProfile, profile: ModelProfile) -> Iterator[str]:
    spoken = options.speculation
    if spoken is not None and spoken.method not in _ALGORITHMS:
        yield f"SGLang has no speculation.method {spoken.method!r}; choose one of {', '.join(_ALGORITHMS)}"
    if spoken is not None and spoken.method in ("eagle", "eagle3", "draft_model") and not spoken.model:
        yield f"speculation.method {spoken.method!r} needs speculation.model, the weights that make the proposals"
    if options.kv_offload is not None and options.kv_offload.backend != "native":
        yield "kv_offload.backend 'lmcache' is vLLM's; SGLang has its own (backend 'native')"
    if options.kv_offload is not None and options.prefix_caching is False:
        yield "kv_offload keeps prefixes, and prefix_caching is off; leave one out"
    if options.kv_offload is not None and options.tensor_parallel > 1:
        yield "kv_offload.gib is of the whole machine, SGLang's is of each accelerator; say --hicache-size in args"


SGLANG = Server(
    title="SGLang",
    image="lmsysorg/sglang",
    runs_on=frozenset({"nvidia", "amd"}),
    command=(
        *("{python}", "-m", "sglang.launch_server", "--model-path", "{weights}", "--served-model-name", "{name}"),
        *("--host", "{host}", "--port", "{port}", "--context-length", "{context}", "--enable-metrics"),
        *("--log-level-http", "warning"),
    ),
    options={
        "tensor_parallel": Option("--tensor-parallel-size", flags=("--tp", "--tp-size")),
        "pipeline_parallel": Option("--pipeline-parallel-size", flags=("--pp", "--pp-size")),
        "dtype": Option("--dtype"),
        "quantization": Option(
            "--quantization",
            names={
                "fp8": "fp8", "awq": "awq", "gptq": "gptq", "nvfp4": "modelopt_fp4",
                "compressed-tensors": "compressed-tensors",
            },
        ),
        "kv_cache_dtype": Option(
            "--kv-cache-dtype",
            names={"auto": "auto", "bfloat16": "bfloat16", "fp8_e5m2": "fp8_e5m2", "fp8_e4m3": "fp8_e4m3", "fp8": "fp8_e4m3"},
        ),
        "prefix_caching": Option(words=lambda on: [] if on else ["--disable-radix-cache"], flags=("--disable-radix-cache",)),
        "max_num_seqs": Option("--max-running-requests"),
        "max_num_batched_tokens": Option("--chunked-prefill-size"),
        "gpu_memory_utilization": Option("--mem-fraction-static"),
        "eager": switch("--disable-cuda-graph"),
        "speculation": Option(words=_speculation, flags=("--speculative-algorithm", "--speculative-num-draft-tokens")),
        "kv_offload": Option(words=_offload, flags=("--enable-hierarchical-cache", "--hicache-size")),
        "chat_template": Option("--chat-template"),
        "structured_outputs": Option(
            "--grammar-backend", names={name: name for name in ("xgrammar", "outlines", "llguidance", "none")}
        ),
        "batch_invariant": switch("--enable-deterministic-inference"),
    },
    reserved=("--host", "--port", "--served-model-name", "--api-key", "--admin-api-key"),
    revision_flag="--revision",
    metrics_path="/metrics",
    metrics={
        "running": "sglang:num_running_reqs",
        "waiting": "sglang:num_queue_reqs",
        "prompt_tokens_total": "sglang:prompt_tokens_total",
        "generation_tokens_total": "sglang:generation_tokens_total",
        "kv_usage": "sglang:token_usage",
    },
    phases={"load": r"Load weight end\. .*elapsed=([0-9.]+) s"},
    refusals=_refused,
)  # fmt: skip
