"""What stands around batches in the rooms' tables, read for many batches at once: for people, and for why they wait."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from broker.control.failed_starts import FAILED_MEMORY_US, held_back
from broker.control.waiting import Cause, Facts, Machine
from broker.costs import BatchCost, batch_costs
from broker.tables import STOPPED, Approval, Assignment, Policy, Quote, Waiting, WaitingTold, Worker
from jobs import batches as jobs_batches
from jobs.batches import Progress
from jobs.clock import db_now
from jobs.tables import Batch, Shard
from markets.tables import RentalRow

LIVE = ("intended", "creating", "running")


@dataclass
class Around:
    """What stands around one batch. `told` is the newest word that was told of why it waits; `now_us` is when all this was
    read."""

    now_us: int
    cost: BatchCost
    progress: Progress
    quote: Quote | None = None
    waiting: Waiting | None = None
    told: WaitingTold | None = None
    approval: Approval | None = None
    assignments: list[Assignment] = field(default_factory=list)
    rentals: list[RentalRow] = field(default_factory=list)
    workers: dict[str, Worker] = field(default_factory=dict)
    busy: frozenset[str] = frozenset()
    held_back: list[str] = field(default_factory=list)
    has_policy: bool = True

    @property
    def planned_end_us(self) -> int | None:
        return max((each.end_us for each in self.assignments), default=None)


async def around(session: AsyncSession, batches: Sequence[Batch]) -> dict[str, Around]:
    """By batch id; a fixed number of queries, however many batches."""
    ids = [batch.id for batch in batches]
    now_us = await db_now(session)
    costs, progress = await batch_costs(session, ids), await jobs_batches.progress(session, ids)
    found = {each: Around(now_us, costs[each], progress[each]) for each in ids}
    await _add_words(session, found)
    quotes = select(Quote).where(col(Quote.batch).in_(ids)).order_by(col(Quote.created_us).desc())
    for quote in await session.scalars(quotes):
        found[quote.batch or ""].quote = quote  # the last one that is set is the first that was made
    policies = {batch.policy_hash for batch in batches}
    known = set(await session.scalars(select(col(Policy.hash)).where(col(Policy.hash).in_(policies))))
    for batch in batches:
        found[batch.id].has_policy = batch.policy_hash in known
    await _add_rentals(session, batches, found)
    await _add_held_back(session, batches, found, now_us)
    return found


async def _add_words(session: AsyncSession, found: Mapping[str, Around]) -> None:
    """What the plan, the ceiling and proposals say, and what was told of it."""
    for waiting in await session.scalars(select(Waiting).where(col(Waiting.batch).in_(found))):
        found[waiting.batch].waiting = waiting
    for told in await session.scalars(select(WaitingTold).where(col(WaitingTold.batch).in_(found))):
        found[told.batch].told = told
    proposals = select(Approval).where(col(Approval.subject).in_(found)).order_by(col(Approval.id))
    for approval in await session.scalars(proposals):
        found[approval.subject].approval = approval  # the newest one is set last
    for assignment in await session.scalars(select(Assignment).where(col(Assignment.batch).in_(found))):
        found[assignment.batch].assignments.append(assignment)


async def _add_rentals(session: AsyncSession, batches: Sequence[Batch], found: Mapping[str, Around]) -> None:
    """To each batch the rentals that cost it something and those that could serve it now, with their workers."""
    paid = {rental for each in found.values() for rental in each.cost.by_rental}
    keys = {assignment.offer_key for each in found.values() for assignment in each.assignments}
    live = col(RentalRow.state).in_(LIVE) & col(RentalRow.offer_key).in_(keys)
    rows = (await session.scalars(select(RentalRow).where(col(RentalRow.id).in_(paid) | live))).all()
    ids = [row.id for row in rows]
    workers = {w.rental: w for w in await session.scalars(select(Worker).where(col(Worker.rental).in_(ids)))}
    leased = select(col(Shard.placement_id)).where(col(Shard.placement_id).in_(ids), col(Shard.state) == "leased")
    busy = frozenset(each for each in await session.scalars(leased.distinct()) if each is not None)
    by_offer: defaultdict[tuple[str, str, str], list[RentalRow]] = defaultdict(list)
    for row in rows:
        by_offer[row.offer_key, row.project, row.model].append(row)
    for batch in batches:
        each = found[batch.id]
        serving = [
            r
            for a in each.assignments
            for r in by_offer[a.offer_key, batch.project, batch.model or ""]
            if r.state in LIVE
        ]
        mine = {row.id: row for row in [*serving, *(row for row in rows if row.id in each.cost.by_rental)]}
        each.rentals = sorted(mine.values(), key=lambda row: row.id)
        each.workers = {rental: workers[rental] for rental in mine if rental in workers}
        each.busy = busy.intersection(mine)


async def _add_held_back(
    session: AsyncSession, batches: Sequence[Batch], found: Mapping[str, Around], now_us: int
) -> None:
    """To each batch why offers that it was to use, or that failed for it, are not rented now."""
    held = await held_back(session, now_us)
    keys = held.everywhere.keys() | held.of_projects.keys()
    if not keys:
        return
    failed: defaultdict[str, set[str]] = defaultdict(set)
    recent = select(RentalRow).where(
        col(RentalRow.offer_key).in_(keys), col(RentalRow.created_us) > now_us - FAILED_MEMORY_US
    )
    for row in await session.scalars(recent):
        for batch_id in row.purpose.get("batches", ()):
            failed[batch_id].add(row.offer_key)
    for batch in batches:
        mine = failed[batch.id] | {each.offer_key for each in found[batch.id].assignments}
        found[batch.id].held_back = [why for key in sorted(mine & keys) if (why := held.why(key, batch.project))]


def facts(batch: Batch, known: Around) -> Facts:
    """The same as the pure rule wants it."""
    done = batch.completed + batch.failed
    waiting, approval, quote = known.waiting, known.approval, known.quote
    closing_us = batch.finalizing_us or batch.cancelling_us
    return Facts(
        now_us=known.now_us,
        status=batch.status,
        ending=batch.ending,
        created_us=batch.created_us,
        expires_us=batch.expires_us,
        in_progress_us=batch.in_progress_us,
        closing_us=closing_us,
        paused_us=batch.paused_us,
        lines=batch.total,
        open_lines=batch.total - done,
        own_lines=known.progress.lines_reserved,
        leases=known.progress.leases,
        approval=None
        if approval is None or approval.outcome is not None
        else Cause(on="approval", reasons=[approval.reason], since_us=approval.created_us),
        cause=None
        if waiting is None
        else Cause(
            on=waiting.waiting_on,
            reasons=list(waiting.reasons),
            since_us=waiting.since_us,
            is_final=waiting.plan == STOPPED,
        ),
        planned_end_us=known.planned_end_us,
        machines=_machines(known),
        held_back=known.held_back,
        quoted_us=None if quote is None or quote.end_us is None else max(0, quote.end_us - quote.created_us),
        has_policy=known.has_policy,
    )


def _machines(known: Around) -> list[Machine]:
    planned = {each.offer_key for each in known.assignments}
    machines = []
    for row in known.rentals:
        worker = known.workers.get(row.id)
        if row.state not in LIVE or row.offer_key not in planned:
            continue
        if worker is not None and worker.drain_reason is not None:
            continue  # it takes no further lines
        machines.append(
            Machine(
                rental=row.id,
                state=row.state,
                worker=worker.state if worker else None,
                since_us=(worker and (worker.ready_us or worker.hello_us)) or row.created_us,
                is_busy=row.id in known.busy,
            )
        )
    return machines
