"""llama.cpp's server by way of xllamacpp, started by the agent's own `llamacpp` command. CPU; GGUF weights."""

from __future__ import annotations

from typing import Any

from workers.errors import BadProfile
from workers.profile import ModelProfile

METRICS = {
    "running": "llamacpp:requests_processing",
    "waiting": "llamacpp:requests_deferred",
    "prompt_tokens_total": "llamacpp:prompt_tokens_total",
    "generation_tokens_total": "llamacpp:tokens_predicted_total",
}


def spec(profile: ModelProfile) -> dict[str, Any]:
    """Raises BadProfile without weights. `args` go to the agent's `llamacpp` command (`--threads 2`; `--pooling mean` for
    embeddings of a model that does not say how it pools)."""
    if not profile.weights:
        raise BadProfile(f"model {profile.id!r}: engine llamacpp needs 'weights', the path of a GGUF file")
    argv = ["{python}", "{agent}", "llamacpp", "--model", profile.weights, "--alias", profile.public_name]
    argv += ["--host", "{host}", "--port", "{port}"]
    argv += ["--parallel", str(profile.parallel), "--context", str(profile.context)]
    argv += ["--embeddings"] if "/v1/embeddings" in profile.endpoints else []
    argv += profile.args
    return {
        "argv": argv,
        "env": dict(profile.env),
        "base_url": None,
        "health_path": "/health",
        "start_timeout_s": 60 + 10 * profile.load_s,
        "stop_grace_s": 10,
        # its slots are fixed; a few more wait so that no slot is ever empty
        "concurrency": {"start": profile.parallel + max(1, profile.parallel // 4), "max": 2 * profile.parallel},
        "request_timeout_s": profile.request_timeout_s,
        "metrics_path": "/metrics",
        "metrics": METRICS,
        "headers": {},
        "served_model": None,
    }
