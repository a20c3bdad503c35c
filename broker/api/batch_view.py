"""A batch as people see it: OpenAI's object out of the jobs room, and in `x_broker` what the other rooms know of it.

Everything is read here, for a whole page of batches at once; nothing is decided.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from sqlalchemy.ext.asyncio import AsyncSession

from broker.api import shapes
from broker.control.around import LIVE, Around, around, facts
from broker.control.convert import usd
from broker.control.explain import relaxation_shape
from broker.control.placements import placements
from broker.control.waiting import Wait, expected_end, waiting_now
from broker.request_times import observed_p95_ms
from broker.tables import Worker
from jobs.clock import MICROSECONDS
from jobs.tables import Batch
from jobs.types import TERMINAL
from markets.tables import RentalRow
from solver.types import Relaxation


async def batch_shapes(session: AsyncSession, batches: Sequence[Batch]) -> list[shapes.Batch]:
    """The batches in their order."""
    known = await around(session, batches)
    return [batch_shape(batch, known[batch.id]) for batch in batches]


async def whole_batch(session: AsyncSession, batch: Batch) -> shapes.Batch:
    """One batch with its placements and its p95, which lists leave out."""
    shape = (await batch_shapes(session, [batch]))[0]
    shape.x_broker.placements = await placements(session, batch.id)
    if shape.x_broker.max_p95_ms is not None:
        shape.x_broker.p95_ms = await observed_p95_ms(session, batch.id)
    return shape


def batch_shape(batch: Batch, known: Around) -> shapes.Batch:
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
        x_broker=_broker(batch, known),
    )


def _broker(batch: Batch, known: Around) -> shapes.BatchBroker:
    wishes = batch.wishes or {}
    is_open = batch.status not in TERMINAL
    plan_says = known.waiting if is_open else None
    found = facts(batch, known)
    wait = waiting_now(found)
    tokens = batch.used_input_tokens + batch.used_output_tokens
    quote = known.quote
    return shapes.BatchBroker(
        approval=known.approval.id if known.approval else None,
        paused=batch.paused_us is not None and is_open and batch.ending is None,
        project=batch.project,
        phase=phase(batch, known.rentals, known.workers),
        waiting_on=wait.on if wait else None,
        # of a batch that moves: why a part of it has no place
        waiting_reasons=list(wait.reasons if wait else plan_says.reasons if plan_says else ()),
        relaxations=[
            relaxation_shape(msgspec.convert(each, Relaxation)) for each in (plan_says.relaxations if plan_says else ())
        ],
        waiting=_waiting(wait, known) if wait else None,
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
        cost_usd=usd(known.cost.nano),
        quote_usd=None if quote is None or quote.cost_nano is None else usd(quote.cost_nano),
        quote_end=None if quote is None else _seconds(quote.end_us),
        eta=_seconds(expected_end(found, wait.on if wait else None)[0]) if is_open else None,
        usd_per_million_tokens=usd(known.cost.nano * 1_000_000 // tokens) if tokens else None,
        preemptions=preemptions(row for row in known.rentals if row.id in known.cost.by_rental),
        max_usd=wishes.get("max_usd"),
        deadline=_seconds(batch.deadline_us),
        max_rtt_ms=wishes.get("max_rtt_ms"),
        max_p95_ms=wishes.get("max_p95_ms"),
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


def _waiting(wait: Wait, known: Around) -> shapes.WaitingNow:
    """`since` is when it was first told of the same cause: a machine that was replaced by another does not begin it anew."""
    told = known.told
    since_us = told.since_us if told is not None and told.cause == wait.on else wait.since_us
    return shapes.WaitingNow(
        on=wait.on,
        reasons=list(wait.reasons),
        since=since_us // MICROSECONDS,
        eta=wait.eta_us // MICROSECONDS,
        eta_basis=wait.eta_basis,
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
        "output_tokens_details": {"reasoning_tokens": batch.used_reasoning_tokens},
        "total_tokens": batch.used_input_tokens + batch.used_output_tokens,
    }


def _errors(batch: Batch) -> shapes.BatchErrors | None:
    if not batch.errors:
        return None
    return shapes.BatchErrors(data=[shapes.BatchError(**each) for each in batch.errors])


def _seconds(us: int | None) -> int | None:
    return None if us is None else us // MICROSECONDS
