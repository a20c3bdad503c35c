"""Engines: from a model's profile to the `engine` object of the welcome (agent/schemas/hello.response.json).

One file an engine, each a pure function `spec`. All that the agent will ever know of an engine is in its result.
"""

from __future__ import annotations

from typing import Any

from workers.engines import command, llamacpp, url, vllm
from workers.profile import ModelProfile

_SPECS = {"llamacpp": llamacpp.spec, "vllm": vllm.spec, "url": url.spec, "command": command.spec}


def engine_spec(profile: ModelProfile) -> dict[str, Any]:
    """The engine object for this profile. Raises BadProfile, naming the model and the field."""
    return _SPECS[profile.engine](profile)
