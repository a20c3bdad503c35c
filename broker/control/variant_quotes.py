"""Of several profiles that may serve a batch, the one to take: each is planned dry, the cheapest feasible one wins."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal

from broker.api import quote_shapes
from broker.control.explain import explain
from broker.control.snapshot import freeze
from broker.services import Services
from jobs.clock import db_now
from ledger.money import to_nano
from solver.residency import Policy
from solver.types import Plan, Snapshot, Work
from workers.profile import ModelProfile

# What can change by itself while a batch waits; anything else needs a person.
PASSING = ("capacity", "quota")


@dataclass(frozen=True, slots=True)
class Dry:
    """A plan that nobody acts on, and what it says of the work in question; `nano_hour` is what the dearest machine that would be
    rented for it costs an hour, and 0 where none would."""

    explanation: quote_shapes.Explanation
    snapshot: Snapshot
    plan: Plan
    nano_hour: int


@dataclass(frozen=True, slots=True)
class Quoted:
    """A profile and what the work would come to with it; `dry` is the plan that says so, None where nothing is left to plan."""

    profile: ModelProfile
    explanation: quote_shapes.Explanation
    dry: Dry | None = None


async def quote_variants(
    services: Services,
    profiles: Sequence[ModelProfile],
    work_with: Callable[[ModelProfile], Work],
    policies: Mapping[str, Policy],
) -> Quoted:
    """Plan the work dry with each profile, beside all that is queued; the winner, its explanation naming all."""
    planned = [(each, await planned_dry(services, work_with(each), policies)) for each in profiles]
    quoted = [Quoted(each, dry.explanation, dry) for each, dry in planned]
    best = cheapest(quoted)
    told = [_told(each, is_chosen=each is best) for each in quoted]
    return replace(best, explanation=best.explanation.model_copy(update={"variants": told}))


def cheapest(quoted: Sequence[Quoted]) -> Quoted:
    """The cheapest feasible one; of equal ones, and where none is feasible, the one preferred (they come in that order).

    One that waits for what passes by itself is taken before one that waits for a person. Raises ValueError without any.
    """
    feasible = [each for each in quoted if each.explanation.feasible]
    if feasible:
        return min(feasible, key=lambda each: Decimal(each.explanation.usd or 0))
    return min(quoted, key=lambda each: each.explanation.waiting_on not in PASSING)


async def dry_run(services: Services, work: Work, policies: Mapping[str, Policy]) -> quote_shapes.Explanation:
    """The work planned now beside all that is queued; nothing is written."""
    return (await planned_dry(services, work, policies)).explanation


async def planned_dry(services: Services, work: Work, policies: Mapping[str, Policy]) -> Dry:
    """The same with the plan itself."""
    async with services.database.transaction() as session:
        frozen = await freeze(session, services, now_us=await db_now(session), extra=[work], extra_policies=policies)
    plan = await services.solver.solve(frozen.snapshot)
    told = explain(work.id, frozen.snapshot, plan, plan_id=None, planned_us=frozen.snapshot.now_us)
    mine = {each.offer_key for each in told.chosen} & {each.offer_key for each in plan.starts}
    nano_hour = max((to_nano(frozen.offers[key].price or Decimal(0)) for key in mine), default=0)
    return Dry(told, frozen.snapshot, plan, nano_hour)


def _told(quoted: Quoted, *, is_chosen: bool) -> quote_shapes.VariantQuote:
    explanation = quoted.explanation
    return quote_shapes.VariantQuote(
        profile=quoted.profile.id,
        model=quoted.profile.public_name,
        precision=quoted.profile.precision,
        chosen=is_chosen,
        feasible=explanation.feasible,
        usd=explanation.usd,
        end=explanation.end,
        waiting_on=explanation.waiting_on,
        reason=explanation.reasons[0] if explanation.reasons else None,
    )
