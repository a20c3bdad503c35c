"""vLLM's OpenAI server, `vllm serve`, out of the image or environment that the agent runs in.

Always on loopback, never in development mode (its extra routes can put the server to sleep or run code).
"""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Any

from workers.errors import BadProfile
from workers.profile import ModelProfile

METRICS = {
    "running": "vllm:num_requests_running",
    "waiting": "vllm:num_requests_waiting",
    "prompt_tokens_total": "vllm:prompt_tokens_total",
    "generation_tokens_total": "vllm:generation_tokens_total",
    "preemptions_total": "vllm:num_preemptions_total",
    "kv_usage": "vllm:kv_cache_usage_perc",
}
# vLLM's own run-batch keeps at least this many in flight; the driver steers below it
_MOST_IN_FLIGHT = 1024
# vLLM's own default of --max-num-seqs for a server: what it cannot run yet waits in its queue, and costs nothing but age.
# An engine that starts with fewer has holes in its batch for seconds (64: 0.84x of run-batch on 120 lines).
_FIRST_GUESS = 256
_DTYPES = {
    "bf16": "bfloat16",
    "bfloat16": "bfloat16",
    "fp16": "float16",
    "float16": "float16",
    "fp32": "float32",
    "float32": "float32",
}
# A media host that a project trusts must not send the engine on to another (vLLM follows redirects by default).
_QUIET = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "VLLM_MEDIA_URL_ALLOW_REDIRECTS": "0"}
_OURS = ("--host", "--port", "--served-model-name", "--api-key", "--uds")


def spec(profile: ModelProfile) -> dict[str, Any]:
    """Raises BadProfile without weights, or when `args` or `env` would open the server to others."""
    if not profile.weights:
        raise BadProfile(
            f"model {profile.id!r}: engine vllm needs 'weights', a folder or a name on the Hugging Face hub"
        )
    taken = [arg for arg in profile.args if arg.partition("=")[0] in _OURS]
    if taken:
        raise BadProfile(f"model {profile.id!r}: args {taken} are set by the broker (loopback only); leave them out")
    if profile.env.get("VLLM_SERVER_DEV_MODE", "0") != "0":
        raise BadProfile(f"model {profile.id!r}: env VLLM_SERVER_DEV_MODE opens control routes; leave it out")
    argv = ["vllm", "serve", profile.weights, "--served-model-name", profile.public_name]
    argv += ["--host", "{host}", "--port", "{port}"]
    argv += ["--max-model-len", str(profile.context), "--uvicorn-log-level", "warning"]
    argv += ["--revision", profile.revision] if profile.revision else []
    argv += _precision(profile)
    return {
        "argv": [*argv, *profile.args],
        "env": {**_QUIET, **_offline(profile.weights), **profile.env},
        "base_url": None,
        "health_path": "/health",
        # a profile's load_s is what the planner counts with; a slow disk or a first compilation takes much longer
        "start_timeout_s": 600 + 10 * profile.load_s,
        "stop_grace_s": 15,
        "concurrency": {
            "start": max(profile.parallel, _FIRST_GUESS),
            "max": max(profile.parallel, _MOST_IN_FLIGHT),
        },
        "request_timeout_s": profile.request_timeout_s,
        "metrics_path": "/metrics",
        "metrics": METRICS,
        "headers": {},
        "served_model": None,
    }


def _precision(profile: ModelProfile) -> list[str]:
    """Number formats have a flag of their own; `fp8` quantises on loading; a quantised checkpoint says so itself."""
    if profile.precision in _DTYPES:
        return ["--dtype", _DTYPES[profile.precision]]
    return ["--quantization", "fp8"] if profile.precision == "fp8" else []


def _offline(weights: str) -> dict[str, str]:
    return {"HF_HUB_OFFLINE": "1"} if PurePosixPath(weights).is_absolute() else {}
