"""Which other profiles the plan may serve a batch by, and what follows when it does.

A batch is free to be served by any profile that its wishes allow until something of it is at a machine: a line was leased, a
machine was rented for it, or it is assigned to one of its profile, which might lease it at any moment. Then it stays with its
profile: its answers are those of one model. Nor is it free where its model is pinned for reuse, or where another profile might
cost what a second person has to approve.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from decimal import Decimal
from typing import Any, Protocol

import structlog
from sqlalchemy import delete, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from broker.api import quote_shapes, shapes
from broker.approvals import approval_of, needed_because, told_nano
from broker.control.convert import usd
from broker.project_limits import project_limits
from broker.services import Services
from broker.tables import Assignment, Quote, Waiting
from broker.variants import ModelWishes, variants
from broker.worker_pool import placed_for
from jobs.tables import Batch, Shard
from jobs.transitions import all_locked, hold_all
from ledger.money import to_nano
from markets import rentals
from solver.types import Chosen, Plan, Snapshot, Variant
from workers.profile import ModelProfile

log = structlog.get_logger()


class Wishing(Protocol):
    """A batch, as far as it says which profiles may serve it."""

    @property
    def model(self) -> str | None: ...
    @property
    def asked_model(self) -> str | None: ...
    @property
    def endpoint(self) -> str | None: ...
    @property
    def wishes(self) -> dict[str, Any] | None: ...


def profiles_of(services: Services, batch: Wishing) -> tuple[ModelProfile, ...]:
    """The profiles that its wishes allow, the preferred one first."""
    wishes = shapes.BatchWishes.model_validate(batch.wishes or {})
    wanted = ModelWishes(models=wishes.models or (), precision=wishes.precision, engine_profile=wishes.engine_profile)
    name = batch.asked_model or batch.model or ""
    return variants(services.models, model=name, endpoint=batch.endpoint, wishes=wanted).profiles


async def alternatives(
    session: AsyncSession, services: Services, batches: Sequence[Batch]
) -> dict[str, tuple[Variant, ...]]:
    """By batch that is free to be served by others than its own profile, these; what policies ask of them is not in it."""
    found: dict[str, tuple[Variant, ...]] = {}
    for batch in batches:
        profiles = profiles_of(services, batch) if batch.model in services.models else ()
        others = tuple(Variant(model=each.id, precision=each.precision) for each in profiles if each.id != batch.model)
        if others and batch.model in {each.id for each in profiles}:
            found[batch.id] = others
    free = await _free(session, services, [batch for batch in batches if batch.id in found])
    return {name: those for name, those in found.items() if name in free}


async def _free(session: AsyncSession, services: Services, batches: Sequence[Batch]) -> frozenset[str]:
    """Those of the batches of which nothing is at a machine, and which nothing else holds to their profile."""
    ids = [batch.id for batch in batches]
    if not ids:
        return frozenset()
    begun = select(col(Shard.batch_id)).where(col(Shard.batch_id).in_(ids), col(Shard.epoch) > 0).distinct()
    held = set(await session.scalars(begun))
    there = await rentals.open_rentals(session)
    for row in there:
        held |= placed_for(row)
    machines = {(row.offer_key, row.project, row.model) for row in there}
    assigned = await session.execute(
        select(col(Assignment.batch), col(Assignment.offer_key)).where(col(Assignment.batch).in_(ids))
    )
    by_id = {batch.id: batch for batch in batches}
    held |= {name for name, key in assigned.all() if (key, by_id[name].project, by_id[name].model or "") in machines}
    free = set[str]()
    for batch in batches:
        is_pinned = batch.revision is not None or bool((batch.wishes or {}).get("reuse"))
        if batch.id not in held and not is_pinned and not await _needs_approval(session, services, batch):
            free.add(batch.id)
    return frozenset(free)


async def _needs_approval(session: AsyncSession, services: Services, batch: Batch) -> bool:
    """Whether what it may cost at the most is more than nobody has to approve, and than who approved it was told."""
    limits = await project_limits(session, services.settings, batch.project)
    limit = (batch.wishes or {}).get("max_usd")
    most = None if limit is None else to_nano(Decimal(limit))
    if needed_because(above_nano=limits.approve_above_nano, quote_nano=None, max_nano=most) is None:
        return False
    earlier = await approval_of(session, batch.id)
    if earlier is None or earlier.outcome != "approved":
        return True
    told = await told_nano(session, earlier)
    return told is not None and (most is None or most > told)


class Changes:
    """What of a plan still holds, its batches locked, and those that it serves by another profile than theirs: each takes it when
    what serves it is there."""

    def __init__(
        self,
        going: frozenset[str],
        batches: Mapping[str, Batch],
        chosen: Mapping[str, Chosen],
        quotes: Mapping[str, Quote],
    ) -> None:
        self.going = going
        """Those that are served by the profile that the plan was made for, or are free to be served by the one that it chose."""
        self._batches, self._chosen, self._quotes = batches, chosen, quotes

    @staticmethod
    async def of(
        session: AsyncSession, services: Services, snapshot: Snapshot, plan: Plan, going: Collection[str]
    ) -> Changes:
        """`snapshot` is what the plan was made of. Locks rows of batches, so it comes before all that is locked after them.

        Only what waits may get another profile (`variant_again`), or what the plan gives one: these rows are held until all is
        written, or a change would lie between the look and the assignment. They are held in one pass: in two, the plan and
        whoever ends batches in the order of their ids waited for each other. What is at work is not held, for its commits want
        the row.
        """
        placed = {each.work_id for each in plan.assignments}
        models = {work.id: work.model for work in snapshot.works}
        chosen = {
            each.work_id: each
            for each in plan.variants
            if each.work_id in going and each.work_id in placed and each.model != models[each.work_id]
        }
        waits = set(await session.scalars(select(col(Waiting.batch)).where(col(Waiting.batch).in_(going))))
        await hold_all(session, waits | chosen.keys())
        found = await session.execute(select(col(Batch.id), col(Batch.model)).where(col(Batch.id).in_(going)))
        same = frozenset(batch for batch, model in found.all() if (model or "") == models[batch])
        if not chosen:
            return Changes(same, {}, {}, {})
        batches = await all_locked(session, sorted(chosen))
        free = await alternatives(
            session, services, [batch for batch in batches.values() if batch.id in same and _goes_on(batch)]
        )
        allowed = {
            name: batches[name]
            for name, each in chosen.items()
            if any((each.model, each.precision) == (other.model, other.precision) for other in free.get(name, ()))
        }
        quotes = await _first_quotes(session, allowed)
        return Changes(same - (chosen.keys() - allowed.keys()), allowed, chosen, quotes)

    async def take(self, session: AsyncSession, batch_ids: Collection[str]) -> None:
        """These are served now: from here on their lines go to machines of the new profile alone.

        The others of this plan's choice have no place yet: assigned, they would be leased by a machine of their old profile that
        is at the same offer, at whatever that costs, and stay with it.
        """
        if left := self._batches.keys() - set(batch_ids):
            await session.execute(delete(Assignment).where(col(Assignment.batch).in_(sorted(left))))
        for name in sorted(self._batches.keys() - left):
            batch, chosen = self._batches[name], self._chosen[name]
            log.info(
                "batch.variant_changed", batch=name, before=batch.model, model=chosen.model, reason=chosen.sentence
            )
            batch.model = chosen.model
            if quote := self._quotes.get(name):  # what was promised stays; which profiles were compared is of now
                quote.body = {**quote.body, "variants": told(chosen, quote.body.get("variants", ()))}


async def _first_quotes(session: AsyncSession, batch_ids: Collection[str]) -> dict[str, Quote]:
    """What was promised to each. Read before the head of the books is locked, for everybody waits there."""
    newest_first = col(Quote.created_us).desc(), col(Quote.id).desc()
    found = await session.scalars(select(Quote).where(col(Quote.batch).in_(sorted(batch_ids))).order_by(*newest_first))
    return {quote.batch: quote for quote in found if quote.batch is not None}


def _goes_on(batch: Batch) -> bool:
    return batch.status == "in_progress" and batch.ending is None and batch.paused_us is None


def told(chosen: Chosen, before: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What the plan compared, as the quote has it; of a plan without words only which was chosen."""
    found = as_quoted(compared(chosen), [quote_shapes.VariantQuote.model_validate(each) for each in before])
    if not found:
        return [{**each, "chosen": each["profile"] == chosen.model} for each in before]
    return [each.model_dump(mode="json") for each in found]


def as_quoted(
    planned: Sequence[quote_shapes.VariantQuote], quoted: Sequence[quote_shapes.VariantQuote]
) -> list[quote_shapes.VariantQuote]:
    """In the order of the quote, the preferred one first, and under its names."""
    names = {each.profile: each.model for each in quoted}
    order = {each.profile: number for number, each in enumerate(quoted)}
    return [
        each.model_copy(update={"model": names.get(each.profile, each.model)})
        for each in sorted(planned, key=lambda each: order.get(each.profile, len(order)))
    ]


def compared(chosen: Chosen) -> list[quote_shapes.VariantQuote]:
    """The profiles that the plan compared, each at what it would cost alone; none where the plan has no words."""
    return [
        quote_shapes.VariantQuote(
            profile=each.model,
            model=each.model,
            precision=each.precision,
            chosen=each.model == chosen.model,
            feasible=each.nano is not None,
            usd=None if each.nano is None else usd(each.nano),
            end=None,
            waiting_on=None,
            reason=each.found,
            sentence=chosen.sentence if each.model == chosen.model else None,
        )
        for each in chosen.costs
    ]
