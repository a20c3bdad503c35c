"""What policies ask of models (publisher, licence, cost, approval): of the works' own, and of what else may serve them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec
from sqlalchemy.ext.asyncio import AsyncSession

from broker.compliance.pinning import model_facts
from broker.compliance.proposals import in_force
from broker.services import Services
from solver.residency import ModelFacts, asks_model
from solver.residency import Policy as ResidencyPolicy
from solver.types import Work


async def models_asked_of(
    session: AsyncSession,
    services: Services,
    works: Sequence[Work],
    policies: Mapping[str, ResidencyPolicy],
    now_us: int,
) -> dict[str, ModelFacts]:
    """What policies ask of the works' models; nothing where none asks."""
    asking = {key for key, policy in policies.items() if asks_model(policy)}
    if not asking:
        return {}
    known = await in_force(session, now_us)
    found = {
        work.id: model_facts(services.models.get(work.model), services.settings, known, work.project)
        for work in works
        if work.policy_hash in asking
    }
    return {work_id: facts for work_id, facts in found.items() if facts is not None}


async def with_model_facts(
    session: AsyncSession,
    services: Services,
    works: Sequence[Work],
    policies: Mapping[str, ResidencyPolicy],
    now_us: int,
) -> list[Work]:
    """The works with what policies ask of their alternatives, where they ask anything."""
    asking = {key for key, policy in policies.items() if asks_model(policy)}
    if not any(work.alternatives and work.policy_hash in asking for work in works):
        return list(works)
    known = await in_force(session, now_us)
    return [
        msgspec.structs.replace(
            work,
            alternatives=tuple(
                msgspec.structs.replace(
                    each, facts=model_facts(services.models.get(each.model), services.settings, known, work.project)
                )
                for each in work.alternatives
            ),
        )
        if work.policy_hash in asking
        else work
        for work in works
    ]
