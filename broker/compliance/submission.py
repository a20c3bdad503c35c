"""What is decided when a batch begins: whether it may lie where our objects do, and why no offer may serve it."""

from __future__ import annotations

from sqlalchemy.ext.asyncio import AsyncSession

from broker.compliance.decisions import record
from broker.compliance.paths import data_paths
from broker.compliance.pinning import model_facts
from broker.compliance.proposals import in_force
from broker.control.convert import facts_of
from broker.control.snapshot import listed_offers
from broker.services import Services
from broker.store_residency import store_at, word_on_store
from jobs.tables import Batch
from solver.residency import Evaluator, Facts, Policy, of_job

# Of how many first reasons a refused batch keeps an example.
EXAMPLES = 16


async def seal_store(
    session: AsyncSession, services: Services, batch: str, policy_hash: str, policy: Policy, now_us: int
) -> None:
    """Keep whether the batch may lie in the store: from now on the store, the log and the control plane have it."""
    # where images come from is a question of the machine that takes one
    paths = tuple(each for each in data_paths(services.settings, now_us, "store") if each.path != "registry")
    facts = store_at(services.settings, now_us, paths)
    await record(
        session,
        services.secret,
        point="submit",
        kind="store",
        batch=batch,
        rental=None,
        offer_key=None,
        policy_hash=policy_hash,
        policy=policy,
        facts=facts,
        decision=word_on_store(policy, facts, now_us),
        at_us=now_us,
    )


async def seal_blocking(session: AsyncSession, services: Services, batch: Batch, policy: Policy, now_us: int) -> None:
    """Keep what the policy says of the offers of now, one offer for each first reason."""
    model = model_facts(
        services.models.get(batch.model or ""), services.settings, await in_force(session, now_us), batch.project
    )
    evaluator, examples = Evaluator(policy), dict[int, tuple[str, Facts]]()
    for each in await listed_offers(session, services, now_us=now_us):
        place = facts_of(each.offer, data_paths(services.settings, now_us, each.offer.launch))
        facts = of_job(place, model if evaluator.asks_model else None, batch.expires_us)
        codes = evaluator.codes(facts, now_us)
        if codes:
            examples.setdefault(codes[0], (str(each.offer.key), facts))
    for key, facts in list(examples.values())[:EXAMPLES]:
        await record(
            session,
            services.secret,
            point="submit",
            batch=batch.id,
            rental=None,
            offer_key=key,
            policy_hash=batch.policy_hash,
            policy=policy,
            facts=facts,
            decision=evaluator.decide(facts, now_us),
            at_us=now_us,
        )
