"""What a rental's worker may work on: the batches that the newest plan put there and whose residency policy allows it.

The policy is evaluated here again, against the facts that were frozen when the rental was placed, at the moment when
work would be handed out. The plan having allowed it once is no permission: evidence expires, plans are replaced. Anything
unknown (no policy stored, no facts) is a no.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import structlog
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from broker.control.convert import facts_of
from broker.tables import Assignment, Policy
from jobs.tables import Batch
from markets.offer_record import offer_from_record
from markets.price_book import offer_of
from markets.tables import OfferRow, RentalRow
from solver.residency import Decision, Reason, evaluate
from solver.residency import Policy as ResidencyPolicy

log = structlog.get_logger()


async def candidates(session: AsyncSession, rental: RentalRow, now_us: int) -> tuple[list[Batch], list[Batch]]:
    """The batches that this rental's worker may lease from, in the plan's order, and those that the plan put there and
    residency forbids now (evidence has expired since it was rented)."""
    statement = (
        select(Batch)
        .join(Assignment, col(Assignment.batch) == col(Batch.id))
        .where(
            col(Assignment.offer_key) == rental.offer_key,
            col(Batch.status) == "in_progress",
            col(Batch.ending).is_(None),
            col(Batch.paused_us).is_(None),
            col(Batch.project) == rental.project,
            col(Batch.model) == rental.model,
        )
        .order_by(col(Assignment.rank), col(Batch.id))
    )
    assigned = (await session.scalars(statement)).all()
    permitted = [batch for batch in assigned if await allowed(session, rental, batch, now_us)]
    return permitted, [batch for batch in assigned if batch not in permitted]


async def pool(session: AsyncSession, rental: RentalRow) -> Sequence[Batch]:
    """The batches that a rental is there for: those that the plan assigns to its offer now, and those it was placed for."""
    assigned = select(col(Assignment.batch)).where(col(Assignment.offer_key) == rental.offer_key)
    purpose = [str(each) for each in rental.purpose.get("batches", ())]
    statement = (
        select(Batch)
        .where(col(Batch.id).in_(assigned) | col(Batch.id).in_(purpose))
        .where(col(Batch.project) == rental.project)
        .order_by(col(Batch.id))
    )
    return (await session.scalars(statement)).all()


async def refusal(session: AsyncSession, rental: RentalRow, batches: Sequence[Batch], now_us: int) -> str | None:
    """Why this rental may serve none of `batches`, or None when at least one policy allows its place.

    No batch at all is a refusal, too: there is nobody who permits it.
    """
    decisions = [await decide(session, rental, batch, now_us) for batch in batches]
    if any(decision.outcome == "allow" for decision in decisions):
        return None
    against = [reason for decision in decisions for reason in decision.reasons if reason.code != "allowed"]
    reasons = "; ".join(dict.fromkeys(f"{each.field} must be {each.wanted}, found {each.found}" for each in against))
    where = f"rental {rental.id} at {rental.offer_key}"
    return f"{where}: residency forbids all of its {len(batches)} batches: {reasons or 'none is assigned'}"


async def decide(session: AsyncSession, rental: RentalRow, batch: Batch, now_us: int) -> Decision:
    """The evaluator's word on this batch at this rental's place, now.

    Both by what was known of the place when it was rented and by what its market says of the same offer now: a listing
    that turns out to lie elsewhere takes the permission back, and a new one cannot give it to an old machine.
    """
    policy = await session.get(Policy, batch.policy_hash)
    if policy is None:
        missing = Reason(
            rule_id="-", field="policy", wanted=f"stored policy {batch.policy_hash}", found="none", code="no_policy"
        )
        return Decision(outcome="deny", reasons=(missing,))
    rules = msgspec.convert(policy.body, ResidencyPolicy)
    decision = evaluate(rules, facts_of(offer_from_record(rental.facts)), now_us)
    listed = await session.get(OfferRow, rental.offer_key)
    if decision.outcome == "deny" or listed is None or listed.gone_us is not None:
        return decision
    return evaluate(rules, facts_of(offer_of(listed)), now_us)


async def allowed(session: AsyncSession, rental: RentalRow, batch: Batch, now_us: int) -> bool:
    """Whether the policy of the batch allows this rental's place now; a no is logged as an error."""
    decision = await decide(session, rental, batch, now_us)
    if decision.outcome == "allow":
        return True
    log.error(
        "lease.forbidden",
        rental=rental.id,
        offer=rental.offer_key,
        batch=batch.id,
        policy=batch.policy_hash,
        rules=[reason.rule_id for reason in decision.reasons],
    )
    return False
