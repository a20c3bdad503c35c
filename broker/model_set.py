"""Which models are served here: the built-in catalogue and the settings, as the workers room's profiles."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from broker.settings import ModelSettings, Settings
from workers.catalogue import SCHEME, built_in_models
from workers.profile import ENDPOINTS, ModelProfile
from workers.weights import ensure_weights


def model_profiles(settings: Settings) -> Mapping[str, ModelProfile]:
    """Profiles by model id; a model in the settings replaces the catalogue's of the same id."""
    configured = {model_id: _profile(model_id, each) for model_id, each in settings.models.items()}
    return {**built_in_models(), **configured}


async def with_weights(profile: ModelProfile, cache: Path) -> ModelProfile:
    """The profile with weights that lie on this machine: those of the catalogue are fetched and verified first.

    Raises WeightsUnavailable or WeightsCorrupt. Other profiles name what the worker's own machine has, and stay as they are.
    """
    if not (profile.weights or "").startswith(SCHEME):
        return profile
    path = await asyncio.to_thread(ensure_weights, profile, cache)
    return replace(profile, weights=str(path))


def _profile(model_id: str, given: ModelSettings) -> ModelProfile:
    fields = given.model_dump()
    fields["endpoints"] = given.endpoints or ENDPOINTS[given.engine]
    fields["api_key"] = given.api_key.get_secret_value() if given.api_key else None
    return ModelProfile(id=model_id, **fields)
