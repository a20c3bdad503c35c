"""A server with an OpenAI-compatible API that already runs, wherever it is; the agent only drives it."""

from __future__ import annotations

from typing import Any

from workers.errors import BadProfile
from workers.profile import ModelProfile


def spec(profile: ModelProfile) -> dict[str, Any]:
    """`base_url` with or without `/v1`. `weights`, if given, is the model's name there. Raises BadProfile without a URL."""
    url = (profile.base_url or "").rstrip("/").removesuffix("/v1")
    if not url.startswith(("http://", "https://")):
        raise BadProfile(f"model {profile.id!r}: engine url needs 'base_url' (http:// or https://), has {url!r}")
    return {
        "argv": None,
        "env": {},
        "base_url": url,
        "health_path": profile.health_path or "/v1/models",
        "start_timeout_s": 60 + profile.load_s,
        "stop_grace_s": 0,
        "concurrency": {"start": profile.parallel, "max": profile.parallel},
        "request_timeout_s": profile.request_timeout_s,
        "metrics_path": profile.metrics_path,
        "metrics": dict(profile.metrics),
        "headers": {} if profile.api_key is None else {"Authorization": f"Bearer {profile.api_key}"},
        "served_model": profile.weights,
    }
