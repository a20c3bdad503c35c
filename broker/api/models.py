"""Models, as at OpenAI: which can be asked for, how they are served, and on how many offers right now."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession

from broker.api import shapes
from broker.api.problems import not_found
from broker.api.registry import EVERYONE, Call, Route, route
from broker.control.snapshot import listed_offers
from broker.price_list import serves
from broker.services import Services
from broker.variants import public_names, serving
from jobs.clock import db_now
from markets.price_book import Listed
from workers.profile import ModelProfile


async def list_models(call: Call) -> shapes.ModelList:
    """List the models that batches may name."""
    async with call.services.database.transaction() as session:
        listed = await _offers(session, call.services)
    profiles = call.services.models
    return shapes.ModelList(data=[_shape(name, serving(profiles, name), listed) for name in public_names(profiles)])


async def get_model(call: Call) -> shapes.Model:
    """One model: how it is served and where it could run now."""
    name = call.path("model")
    profiles = serving(call.services.models, name)
    if not profiles:
        known = ", ".join(public_names(call.services.models)) or "none"
        raise not_found("model_not_found", f"The model {name!r} is not served here; known: {known}.")
    async with call.services.database.transaction() as session:
        return _shape(name, profiles, await _offers(session, call.services))


async def _offers(session: AsyncSession, services: Services) -> Sequence[Listed]:
    return await listed_offers(session, services, now_us=await db_now(session))


def _shape(name: str, profiles: Sequence[ModelProfile], listed: Sequence[Listed]) -> shapes.Model:
    """A name that lines may use. What is said of it is said of its first profile, the preferred one; `profiles` has all."""
    preferred = profiles[0]
    ours: dict[str, Any] = {
        **_facts(preferred, listed),
        "serves": preferred.public_name,
        "profiles": [{"id": each.id, **_facts(each, listed)} for each in profiles],
    }
    # OpenAI's `created` is when a model appeared; a profile has no such time, and 0 says so.
    return shapes.Model(id=name, created=0, owned_by="broker", x_broker=ours)


def _facts(profile: ModelProfile, listed: Sequence[Listed]) -> dict[str, Any]:
    usable = [
        each for each in listed if each.excluded is None and each.offer.capacity != 0 and serves(profile, each.offer)
    ]
    return {
        "engine": profile.engine,
        "precision": profile.precision,
        "context": profile.context,
        "endpoints": list(profile.endpoints),
        "launches": list(profile.launches),
        "offers": len(usable),
        "tokens_per_s": {name: list(speeds) for name, speeds in profile.tokens_per_s.items()},
    }


ROUTES: tuple[Route, ...] = (
    route("GET", "/v1/models", list_models, tag="models", roles=EVERYONE),
    route("GET", "/v1/models/{model}", get_model, tag="models", roles=EVERYONE),
)
