"""A batch as people see it: OpenAI's object out of the jobs room, and in `x_broker` what the other rooms know of it.

Everything is read here, for a whole page of batches at once; nothing is decided.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from broker.api import shapes
from broker.control.convert import usd
from broker.control.explain import relaxation_shape
from broker.control.placements import placements
from broker.costs import BatchCost, batch_costs
from broker.tables import Approval, Assignment, Quote, Waiting, Worker
from jobs.clock import MICROSECONDS
from jobs.tables import Batch
from jobs.types import TERMINAL
from markets.tables import RentalRow
from solver.types import Relaxation

LIVE = ("intended", "creating", "running")


@dataclass
class Around:
    """What stands around one batch in the other rooms' tables."""

    cost: BatchCost
    quote: Quote | None = None
    waiting: Waiting | None = None
    approval: Approval | None = None
    assignments: list[Assignment] = field(default_factory=list)
    rentals: list[RentalRow] = field(default_factory=list)
    workers: dict[str, Worker] = field(default_factory=dict)


async def batch_shapes(session: AsyncSession, batches: Sequence[Batch]) -> list[shapes.Batch]:
    """The batches in their order."""
    around = await _around(session, batches)
    return [batch_shape(batch, around[batch.id]) for batch in batches]


async def whole_batch(session: AsyncSession, batch: Batch) -> shapes.Batch:
    """One batch with its placements, which lists leave out."""
    shape = (await batch_shapes(session, [batch]))[0]
    shape.x_broker.placements = await placements(session, batch.id)
    return shape


async def _around(session: AsyncSession, batches: Sequence[Batch]) -> dict[str, Around]:
    ids = [batch.id for batch in batches]
    costs = await batch_costs(session, ids)
    found = {each: Around(costs[each]) for each in ids}
    for waiting in await session.scalars(select(Waiting).where(col(Waiting.batch).in_(ids))):
        found[waiting.batch].waiting = waiting
    proposals = select(Approval).where(col(Approval.subject).in_(ids)).order_by(col(Approval.id))
    for approval in await session.scalars(proposals):
        found[approval.subject].approval = approval  # the newest one is set last
    for assignment in await session.scalars(select(Assignment).where(col(Assignment.batch).in_(ids))):
        found[assignment.batch].assignments.append(assignment)
    quotes = select(Quote).where(col(Quote.batch).in_(ids)).order_by(col(Quote.created_us).desc())
    for quote in await session.scalars(quotes):
        found[quote.batch or ""].quote = quote  # the last one that is set is the first that was made
    await _add_rentals(session, batches, found)
    return found


async def _add_rentals(session: AsyncSession, batches: Sequence[Batch], found: Mapping[str, Around]) -> None:
    """To each batch the rentals that cost it something and those that could serve it now, with their workers."""
    paid = {rental for each in found.values() for rental in each.cost.by_rental}
    keys = {assignment.offer_key for each in found.values() for assignment in each.assignments}
    live = col(RentalRow.state).in_(LIVE) & col(RentalRow.offer_key).in_(keys)
    rows = (await session.scalars(select(RentalRow).where(col(RentalRow.id).in_(paid) | live))).all()
    workers = {
        w.rental: w for w in await session.scalars(select(Worker).where(col(Worker.rental).in_([r.id for r in rows])))
    }
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


def batch_shape(batch: Batch, around: Around) -> shapes.Batch:
    """OpenAI's batch object with `x_broker`."""
    return shapes.Batch(
        id=batch.id,
        endpoint=batch.endpoint,
        model=batch.asked_model or batch.model,
        errors=_errors(batch),
        input_file_id=batch.input_file_id,
        completion_window=batch.completion_window,
        status=batch.status,
        output_file_id=batch.output_file_id,
        error_file_id=batch.error_file_id,
        created_at=batch.created_us // MICROSECONDS,
        in_progress_at=_seconds(batch.in_progress_us),
        expires_at=_seconds(batch.expires_us),
        finalizing_at=_seconds(batch.finalizing_us),
        completed_at=_seconds(batch.completed_us),
        failed_at=_seconds(batch.failed_us),
        expired_at=_seconds(batch.expired_us),
        cancelling_at=_seconds(batch.cancelling_us),
        cancelled_at=_seconds(batch.cancelled_us),
        request_counts=shapes.RequestCounts(
            total=batch.total, completed=batch.completed, failed=batch.failed + batch.expired + batch.cancelled
        ),
        metadata=batch.metadata_,
        usage=_usage(batch),
        x_broker=_broker(batch, around),
    )


def _broker(batch: Batch, around: Around) -> shapes.BatchBroker:
    wishes = batch.wishes or {}
    moving = batch.status not in TERMINAL
    waiting = around.waiting if moving else None
    tokens = batch.used_input_tokens + batch.used_output_tokens
    quote = around.quote
    return shapes.BatchBroker(
        approval=around.approval.id if around.approval else None,
        paused=batch.paused_us is not None and moving and batch.ending is None,
        project=batch.project,
        phase=phase(batch, around.rentals, around.workers),
        waiting_on=waiting.waiting_on if waiting else None,
        waiting_reasons=list(waiting.reasons) if waiting else [],
        relaxations=[relaxation_shape(msgspec.convert(each, Relaxation)) for each in waiting.relaxations]
        if waiting
        else [],
        counts=shapes.LineCounts(
            total=batch.total,
            completed=batch.completed,
            failed=batch.failed,
            expired=batch.expired,
            cancelled=batch.cancelled,
        ),
        invalid=batch.invalid,
        errors_total=batch.errors_total,
        reused=_reused(batch),
        tokens={"input": batch.used_input_tokens, "output": batch.used_output_tokens},
        cost_usd=usd(around.cost.nano),
        quote_usd=None if quote is None or quote.cost_nano is None else usd(quote.cost_nano),
        quote_end=None if quote is None else _seconds(quote.end_us),
        eta=_seconds(max((a.end_us for a in around.assignments), default=None)) if moving else None,
        usd_per_million_tokens=usd(around.cost.nano * 1_000_000 // tokens) if tokens else None,
        preemptions=preemptions(row for row in around.rentals if row.id in around.cost.by_rental),
        max_usd=wishes.get("max_usd"),
        deadline=_seconds(batch.deadline_us),
        residency=wishes.get("residency"),
        priority=batch.priority,
        tags=wishes.get("tags") or {},
        order=batch.line_order,
        served_model=batch.model,
        models=wishes.get("models"),
        precision=wishes.get("precision"),
        engine_profile=wishes.get("engine_profile"),
        confidentiality=wishes.get("confidentiality"),
        on_infeasible=wishes.get("on_infeasible", "fail"),
        skip_invalid=wishes.get("skip_invalid", False),
        reuse=wishes.get("reuse", False),
        retry_of=batch.retry_of,
    )


def _reused(batch: Batch) -> shapes.Reused | None:
    """None for a batch that did not ask for it; what was reused is shown in any case."""
    if not batch.reused and not (batch.wishes or {}).get("reuse"):
        return None
    return shapes.Reused(
        lines=batch.reused,
        input_tokens=batch.reused_input_tokens,
        output_tokens=batch.reused_output_tokens,
        saved_usd=usd(batch.saved_nano),
    )


def phase(batch: Batch, rentals: Sequence[RentalRow], workers: Mapping[str, Worker]) -> str:
    """Where a batch is on its way: queued, provisioning, loading_model, running, finalizing or ended."""
    if batch.status in TERMINAL:
        return "ended"
    if batch.ending is not None or batch.status == "finalizing":
        return "finalizing"
    live = [row for row in rentals if row.state in LIVE]
    states = {workers[row.id].state for row in live if row.id in workers}
    if states & {"ready", "draining"}:
        return "running"
    if "starting" in states:
        return "loading_model"
    return "provisioning" if live else "queued"


def preemptions(rentals: Any) -> int:
    """Rentals that ended without our asking: taken back by the market, or their machine died."""
    return sum(row.state in ("ended", "lost") and row.release_us is None for row in rentals)


def _usage(batch: Batch) -> dict[str, Any] | None:
    """OpenAI's usage object; None before the first answer."""
    if not batch.completed + batch.failed:
        return None
    return {
        "input_tokens": batch.used_input_tokens,
        "input_tokens_details": {"cached_tokens": batch.used_cached_tokens},
        "output_tokens": batch.used_output_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": batch.used_input_tokens + batch.used_output_tokens,
    }


def _errors(batch: Batch) -> shapes.BatchErrors | None:
    if not batch.errors:
        return None
    return shapes.BatchErrors(data=[shapes.BatchError(**each) for each in batch.errors])


def _seconds(us: int | None) -> int | None:
    return None if us is None else us // MICROSECONDS
