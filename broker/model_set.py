"""Which models are served here: the built-in catalogue and the settings, as the workers room's profiles."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from broker.model_settings import ModelSettings
from broker.settings import Settings
from workers.catalogue import SCHEME, built_in_models
from workers.engines import findings
from workers.errors import BadProfile
from workers.profile import ENDPOINTS, ModelProfile
from workers.weights import ensure_weights


def model_profiles(settings: Settings) -> Mapping[str, ModelProfile]:
    """Profiles by model id; a model in the settings replaces the catalogue's of the same id.

    Raises BadProfile naming everything that is wrong in any of them.
    """
    configured = {each.id: each for model_id, given in settings.models.items() for each in _profiles(model_id, given)}
    wrong = [f"model {each.id!r}: {what}" for each in configured.values() for what in findings(each)]
    if wrong:
        raise BadProfile("; ".join(wrong))
    return {**built_in_models(), **configured}


async def with_weights(profile: ModelProfile, cache: Path) -> ModelProfile:
    """The profile with weights that lie on this machine: those of the catalogue are fetched and verified first.

    Raises WeightsUnavailable or WeightsCorrupt. Other profiles name what the worker's own machine has, and stay as they are.
    """
    if not (profile.weights or "").startswith(SCHEME):
        return profile
    path = await asyncio.to_thread(ensure_weights, profile, cache)
    return replace(profile, weights=str(path))


# What residency policies ask of a model (broker/compliance/pinning.py), and who serves it need not know.
OF_POLICIES = ("publisher", "licence", "costly")


def _profiles(model_id: str, given: ModelSettings) -> Iterator[ModelProfile]:
    """A section with named profiles is these and nothing else; without any it is a profile itself."""
    own = given.model_dump(exclude={"profiles", *OF_POLICIES})
    own["endpoints"] = given.endpoints or ENDPOINTS[given.engine]
    own["api_key"] = given.api_key.get_secret_value() if given.api_key else None
    if not given.profiles:
        yield ModelProfile(id=model_id, **own)
    for name, changes in given.profiles.items():
        changed = {field: value for field, value in dict(changes).items() if value is not None}
        precision = changes.precision or changes.options.precision or given.precision
        named = {"id": f"{model_id}@{name}", "serves": given.serves or model_id, "precision": precision}
        yield ModelProfile(**(own | changed | named))
