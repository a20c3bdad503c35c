"""Which models are served here: the built-in catalogue and the settings, as the workers room's profiles."""

from __future__ import annotations

from collections.abc import Mapping

from broker.settings import ModelSettings, Settings
from workers.catalogue import CATALOGUE
from workers.profile import ModelProfile


def model_profiles(settings: Settings) -> Mapping[str, ModelProfile]:
    """Profiles by model id; a model in the settings replaces the catalogue's of the same id."""
    configured = {model_id: _profile(model_id, each) for model_id, each in settings.models.items()}
    return {**CATALOGUE, **configured}


def _profile(model_id: str, given: ModelSettings) -> ModelProfile:
    fields = given.model_dump()
    fields["api_key"] = given.api_key.get_secret_value() if given.api_key else None
    return ModelProfile(id=model_id, **fields)
