"""Which profile serves a batch that waits is asked again while it waits: prices move, and what was sold out comes back.

A batch that no engine has begun has no reason to keep the profile that was cheapest when it was made. Mostly every plan chooses
anew between them (`alternatives`); here are those that it does not choose for: where another profile may need a second person's
word, which depends on what it would cost. Each look plans a batch dry with every profile that its wishes allow, beside all that
is queued, as at its beginning; a few batches a minute, each only so often.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

import structlog
from sqlalchemy import delete, exists, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from broker.api import quote_shapes
from broker.approvals import approval_of, needed_because, told_nano
from broker.budgets import Over, Placement, why_refused
from broker.control.alternatives import alternatives, profiles_of
from broker.control.quote import quote_batch
from broker.control.snapshot import max_nano
from broker.control.variant_quotes import Quoted
from broker.project_limits import project_limits
from broker.services import Services
from broker.tables import STOPPED, Assignment, Quote, Waiting
from jobs import batches
from jobs.clock import db_now
from jobs.tables import Batch, Shard
from jobs.transitions import locked
from ledger.money import to_nano
from markets import rentals
from workers.profile import ModelProfile

log = structlog.get_logger()
# A look is a plan for each profile: not more often than this for one batch.
LOOK_US = 600_000_000
# How often the batches that wait are listed, of how many is asked then whether there is a choice, and how many are looked at.
ROUND_US, ASKED, LOOKED_AT = 60_000_000, 500, 2
# Less than this part of the cost is not worth another model in the explanation.
WORTH = Decimal("0.02")


@dataclass
class VariantAgain:
    """`_looked`: when each batch that waits was looked at last."""

    services: Services
    _looked: dict[str, int] = field(default_factory=dict)
    _next_us: int = 0

    async def step(self) -> None:
        """Look at those that were looked at longest ago, if any is due."""
        async with self.services.database.transaction() as session:
            now_us = await db_now(session)
            if now_us < self._next_us:
                return
            self._next_us = now_us + min(ROUND_US, LOOK_US)
            waiting = {row.id: row for row in await _waiting(session)}
        self._looked = {name: at_us for name, at_us in self._looked.items() if name in waiting}
        for batch_id, row in waiting.items():
            self._looked.setdefault(batch_id, row.in_progress_us or now_us)
        due = [(at_us, name) for name, at_us in self._looked.items() if at_us + LOOK_US <= now_us]
        left = LOOKED_AT
        for _, batch_id in sorted(due)[:ASKED]:
            if not left:
                break
            profiles = profiles_of(self.services, waiting[batch_id])
            self._looked[batch_id] = now_us
            if len(profiles) > 1 and not await self._is_planned(batch_id):
                left -= 1
                async with self.services.claimed("validate", batch_id) as mine:
                    if mine is not None:
                        await VariantAgain(mine).look(batch_id, profiles)

    async def _is_planned(self, batch_id: str) -> bool:
        """Whether the plan itself chooses between its profiles."""
        async with self.services.database.transaction() as session:
            batch = await session.get(Batch, batch_id)
            return batch is not None and bool(await alternatives(session, self.services, [batch]))

    async def look(self, batch_id: str, profiles: Sequence[ModelProfile]) -> None:
        """Plan it with each, and change the profile where another is feasible and this one is not, or is dearer."""
        async with self.services.database.transaction() as session:
            batch = await session.get(Batch, batch_id)
            left = await batches.remaining(session, batch_id)
        if batch is None:
            return
        quoted = await quote_batch(self.services, batch, left, profiles)
        if not is_better(quoted.explanation.variants, batch.model or ""):
            return
        if over := await self._over(batch, quoted):
            log.info("batch.variant_over_budget", batch=batch.id, model=quoted.profile.id, reason=over.why)
            return
        async with self.services.database.transaction() as session:
            is_changed = await self._change(session, batch, quoted)
        if is_changed:
            log.info("batch.variant_changed", batch=batch.id, before=batch.model, model=quoted.profile.id)
            self.services.nudge("plan")

    async def _over(self, batch: Batch, quoted: Quoted) -> Over | None:
        """Why no hold would be made for it, by a limit that the plan does not see (dollars an hour): it would wait there, too."""
        nano = to_nano(Decimal(quoted.explanation.usd or 0))
        asked = Placement(
            batch.project, (batch.id,), max(1, nano), price_nano_hour=quoted.dry.nano_hour if quoted.dry else 0
        )
        async with self.services.database.transaction() as session:
            return await why_refused(session, asked, now_us=await db_now(session))

    async def _change(self, session: AsyncSession, seen: Batch, quoted: Quoted) -> bool:
        """Unless it was changed or begun since it was looked at, or would need a second person's word."""
        batch = await locked(session, seen.id)
        is_same = (batch.version, batch.model) == (seen.version, seen.model)
        if not is_same or not await _waiting(session, seen.id):
            return False
        limits = await project_limits(session, self.services.settings, batch.project)
        cost = quoted.explanation.usd
        reason = needed_because(
            above_nano=limits.approve_above_nano,
            quote_nano=None if cost is None else to_nano(Decimal(cost)),
            max_nano=max_nano((batch.wishes or {}).get("max_usd")),
        )
        if reason is not None and not await _is_approved(session, batch.id, cost):
            log.info("batch.variant_needs_approval", batch=batch.id, model=quoted.profile.id, reason=reason)
            return False
        batch.model = quoted.profile.id
        await session.execute(delete(Assignment).where(col(Assignment.batch) == batch.id))
        first = select(Quote).where(col(Quote.batch) == batch.id).order_by(col(Quote.created_us)).limit(1)
        quote: Quote | None = await session.scalar(first)
        if quote is not None:  # what was promised stays; which profiles were compared is of now
            told = [each.model_dump(mode="json") for each in quoted.explanation.variants]
            quote.body = {**quote.body, "variants": told}
        return True


async def _is_approved(session: AsyncSession, batch_id: str, usd: str | None) -> bool:
    """Whether a second person approved it, and was told no less than that."""
    earlier = await approval_of(session, batch_id)
    if earlier is None or earlier.outcome != "approved":
        return False
    told = await told_nano(session, earlier)
    return told is None or to_nano(Decimal(usd or 0)) <= told


def is_better(told: Sequence[quote_shapes.VariantQuote], current: str) -> bool:
    """Whether the chosen one of these is worth changing to. Pure."""
    chosen = next((each for each in told if each.chosen), None)
    before = next((each for each in told if each.profile == current), None)
    if chosen is None or not chosen.feasible or chosen.profile == current:
        return False
    if before is None or not before.feasible:
        return True
    return Decimal(chosen.usd or 0) < Decimal(before.usd or 0) * (1 - WORTH)


@dataclass(frozen=True, slots=True)
class _Waits:
    """A batch that waits, as far as it says which profiles may serve it: there may be tens of thousands."""

    id: str
    project: str
    model: str | None
    asked_model: str | None
    endpoint: str | None
    wishes: dict[str, Any] | None
    in_progress_us: int | None


async def _waiting(session: AsyncSession, batch_id: str | None = None) -> list[_Waits]:
    """Batches that wait whole (or this one, if it does): no line was ever leased, no machine is there for their profile, and no
    answer of earlier ones was taken over (whose model is pinned)."""
    has_begun = exists().where(col(Shard.batch_id) == col(Batch.id), col(Shard.epoch) > 0)
    found = await session.execute(
        select(*(getattr(Batch, each) for each in _Waits.__dataclass_fields__))
        .join(Waiting, col(Waiting.batch) == col(Batch.id))
        .where(
            col(Batch.status) == "in_progress",
            col(Batch.ending).is_(None),
            col(Batch.paused_us).is_(None),
            col(Batch.revision).is_(None),
            col(Waiting.plan) != STOPPED,
            ~has_begun,
            *(() if batch_id is None else (col(Batch.id) == batch_id,)),
        )
        .order_by(col(Batch.id))
    )
    served = {(row.project, row.model) for row in await rentals.open_rentals(session)}
    waits = [_Waits(*row) for row in found]
    return [each for each in waits if (each.project, each.model) not in served and not (each.wishes or {}).get("reuse")]
