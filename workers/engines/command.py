"""Any program that serves the OpenAI API on {host}:{port}; for example SGLang, TensorRT-LLM, or one's own."""

from __future__ import annotations

from typing import Any

from workers.errors import BadProfile
from workers.profile import ModelProfile


def spec(profile: ModelProfile) -> dict[str, Any]:
    """`argv` may name {python} {agent} {dir} {host} {port}; it must name {port}. Raises BadProfile."""
    if not profile.argv or not any("{port}" in part for part in [*profile.argv, *profile.env.values()]):
        raise BadProfile(f"model {profile.id!r}: engine command needs 'argv' with a place for {{port}}: {profile.argv}")
    return {
        "argv": [*profile.argv, *profile.args],
        "env": dict(profile.env),
        "base_url": None,
        "health_path": profile.health_path or "/health",
        "start_timeout_s": 60 + 10 * profile.load_s,
        "stop_grace_s": 10,
        "concurrency": {"start": profile.parallel, "max": 4 * profile.parallel},
        "request_timeout_s": profile.request_timeout_s,
        "metrics_path": profile.metrics_path,
        "metrics": dict(profile.metrics),
        "headers": {},
        "served_model": profile.weights,
    }
