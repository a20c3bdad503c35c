"""What a rental's worker may work on: the batches that the newest plan put there and whose residency policy allows it.

The policy is evaluated here again, against the facts that were frozen when the rental was placed and those of now, at the moment
when work would be handed out. The plan having allowed it once is no permission: evidence expires, plans are replaced. Anything
unknown (no policy stored, no facts) is a no.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import structlog
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from broker.budget_batches import shut
from broker.compliance.decisions import Point
from broker.compliance.hello import Seen, word_on
from broker.compliance.judging import Judged, forget, is_elsewhere, judge, may_go_on, missing_policy, seal, seal_seen
from broker.services import Services
from broker.tables import Assignment
from broker.token_buying import covered, is_bought
from jobs.clock import db_now
from jobs.tables import Batch
from markets.tables import RentalRow

log = structlog.get_logger()


@dataclass
class Candidates:
    """The batches that a rental's worker may lease from, in the plan's order: their ids, each judged when it is asked for, so
    that a lease costs the judgement of the batches up to its own. `forbidden` are those that were asked for and that
    residency forbids now (evidence has expired since it was rented), with the word on each. Batches whose own budget is
    stopped are neither."""

    session: AsyncSession
    services: Services
    rental: RentalRow
    now_us: int
    stopped: Mapping[str, str]
    left: deque[Batch]
    forbidden: list[tuple[Batch, Judged]] = field(default_factory=list)

    def __aiter__(self) -> Candidates:
        return self

    async def __anext__(self) -> str:
        while self.left:
            batch = self.left.popleft()
            if batch.id in self.stopped:
                # whoever the machine was rented for: a budget that is used up buys nothing more on it
                log.warning("lease.over_budget", rental=self.rental.id, batch=batch.id, budget=self.stopped[batch.id])
                continue
            word = await judge(self.session, self.services, self.rental, batch, self.now_us)
            if word.is_allowed:
                return batch.id
            self.forbidden.append((batch, word))
            _forbidden(self.rental, batch, word)
        raise StopAsyncIteration

    async def seal_forbidden(self) -> None:
        """Keep each no as evidence, in the caller's transaction: for when they end the machine, not at each of its polls."""
        for batch, word in self.forbidden:
            await seal(self.session, self.services, "lease", self.rental, batch, word, self.now_us)


async def candidates(session: AsyncSession, services: Services, rental: RentalRow, now_us: int) -> Candidates:
    """Of the batches that the plan put on this rental's offer; none is judged yet."""
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
    if is_bought(rental):
        # what is not set aside yet is not spent: the accrual loop extends the hold, or takes the batch off
        assigned = [batch for batch in assigned if batch.id in covered(rental)]
    stopped = await shut(session, rental.project, [batch.id for batch in assigned])
    return Candidates(session, services, rental, now_us, stopped, deque(assigned))


async def pool(session: AsyncSession, rental: RentalRow) -> Sequence[Batch]:
    """The batches that a rental is there for: those it was placed for, and after them those that the plan assigns to its offer
    now."""
    assigned = select(col(Assignment.batch)).where(col(Assignment.offer_key) == rental.offer_key)
    purpose = placed_for(rental)
    statement = (
        select(Batch)
        .where(col(Batch.id).in_(assigned) | col(Batch.id).in_(purpose))
        .where(col(Batch.project) == rental.project)
        .order_by(col(Batch.id))
    )
    found = (await session.scalars(statement)).all()
    return sorted(found, key=lambda each: each.id not in purpose)


def heard_for(rental: RentalRow, batches: Sequence[Batch]) -> Sequence[Batch]:
    """Of its pool, the batches for which a machine's first call is sealed: those that it was placed for, else one. What comes
    later has it sealed with its first lease there."""
    purpose = placed_for(rental)
    return [each for each in batches if each.id in purpose] or batches[:1]


def placed_for(rental: RentalRow) -> frozenset[str]:
    return frozenset(str(each) for each in rental.purpose.get("batches", ()))


async def refusal(
    session: AsyncSession,
    services: Services,
    rental: RentalRow,
    batches: Sequence[Batch],
    now_us: int,
    point: Point,
) -> str | None:
    """Why this rental may serve none of `batches`, or None when at least one policy allows its place. Each word is sealed.

    Asked of all that it was placed for, and of the rest of its `pool` until one allows it: a queue may have put thousands
    on its offer, and each is asked of again, and sealed, before a line of it is given out. No batch at all is a refusal, too:
    there is nobody who permits it.
    """
    purpose, words = placed_for(rental), list[tuple[Batch, Judged]]()
    for batch in batches:
        if batch.id not in purpose and any(word.is_allowed for _, word in words):
            break
        words.append((batch, await judge(session, services, rental, batch, now_us)))
    for batch, word in words:
        await seal(session, services, point, rental, batch, word, now_us)
    if any(word.is_allowed for _, word in words):
        return None
    against = [
        reason
        for _, word in words
        for reason in (word.decision.reasons if word.policy else (missing_policy(word.policy_hash),))
        if reason.code not in ("allowed", "not_denied")
    ]
    reasons = "; ".join(dict.fromkeys(f"{each.field} must be {each.wanted}, found {each.found}" for each in against))
    where = f"rental {rental.id} at {rental.offer_key}"
    return f"{where}: residency forbids all of its {len(words)} batches: {reasons or 'none is assigned'}"


async def still_allowed(
    session: AsyncSession, services: Services, rental: RentalRow, batch: Batch, now_us: int, what: Seen
) -> bool:
    """Whether a lease of the batch may go on at this rental's place; a no is logged as an error, and sealed, and so is a yes
    to a machine that is somewhere else than it was."""
    word = await may_go_on(session, services, rental, batch, now_us)
    if word.is_allowed:
        if await is_elsewhere(session, rental, batch, word, what.observed, now_us):
            await seal(session, services, "heartbeat", rental, batch, word, now_us)
            await seal_seen(session, services, "heartbeat", rental, batch.id, what, now_us)
        return True
    _forbidden(rental, batch, word)
    await seal(session, services, "heartbeat", rental, batch, word, now_us)
    return False


async def released(session: AsyncSession, services: Services, rental: RentalRow, batch: Batch, what: Seen) -> bool:
    """Whether a granted lease may be given out, asked once more and sealed: from now on the machine may hold the input.

    Of this moment, with nothing that was read for the candidates: a policy may have come into force since, and the time that
    the candidates were judged at lies before it."""
    forget(session)
    now_us = await db_now(session)
    if word_on(what).outcome == "deny":
        await seal_seen(session, services, "lease", rental, batch.id, what, now_us)
        return False
    word = await judge(session, services, rental, batch, now_us)
    await seal(session, services, "lease", rental, batch, word, now_us)
    if not word.is_allowed:
        _forbidden(rental, batch, word)
        return False
    if await is_elsewhere(session, rental, batch, word, what.observed, now_us):
        await seal_seen(session, services, "lease", rental, batch.id, what, now_us)
    return True


async def may_read(
    session: AsyncSession, services: Services, rental: RentalRow, batch: Batch, now_us: int, what: Seen
) -> bool:
    """Whether the machine may read the input of a lease that it holds, at the moment when it does. A no is sealed."""
    if word_on(what).outcome == "deny":
        await seal_seen(session, services, "lease", rental, batch.id, what, now_us)
        return False
    word = await may_go_on(session, services, rental, batch, now_us)
    if not word.is_allowed:
        _forbidden(rental, batch, word)
        await seal(session, services, "lease", rental, batch, word, now_us)
    return word.is_allowed


def _forbidden(rental: RentalRow, batch: Batch, word: Judged) -> None:
    log.error(
        "lease.forbidden",
        rental=rental.id,
        offer=rental.offer_key,
        batch=batch.id,
        policy=word.policy_hash,
        rules=[reason.rule_id for reason in word.decision.reasons],
    )
