"""Carries out what `jobs.state` decides: the one place where a batch's status is written."""

from __future__ import annotations

from collections.abc import Collection

import structlog
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from jobs import leases, outbox
from jobs.errors import BadTransition, BatchNotFound
from jobs.state import BatchView, Event, decide
from jobs.tables import Batch

log = structlog.get_logger()


async def locked(session: AsyncSession, batch_id: str) -> Batch:
    """The batch's row, locked until the transaction ends: commits, cancellation and expiry queue up here.

    Whoever locks a shard as well does so after this. Rows that refer to the batch may be added meanwhile (PostgreSQL: FOR
    NO KEY UPDATE): whoever grants a lease holds the shard, and must not wait for the batch. Raises BatchNotFound.
    """
    return (await all_locked(session, [batch_id]))[batch_id]


async def all_locked(session: AsyncSession, batch_ids: Collection[str]) -> dict[str, Batch]:
    """Several batches' rows, locked as by `locked` in the order that everybody keeps: by id. Raises BatchNotFound."""
    statement = (
        select(Batch)
        .where(col(Batch.id).in_(sorted(set(batch_ids))))
        .order_by(col(Batch.id))
        .with_for_update(key_share=True)
        .execution_options(populate_existing=True)
    )
    found = {batch.id: batch for batch in await session.scalars(statement)}
    for batch_id in batch_ids:
        if batch_id not in found:
            raise BatchNotFound(f"no batch {batch_id}")
    return found


async def hold_all(session: AsyncSession, batch_ids: Collection[str]) -> None:
    """Lock as `all_locked` does, without reading the rows: there may be tens of thousands. One that is gone is passed over."""
    statement = select(col(Batch.id)).where(col(Batch.id).in_(sorted(set(batch_ids)))).order_by(col(Batch.id))
    await session.execute(statement.with_for_update(key_share=True))


async def transition(
    session: AsyncSession,
    batch: Batch,
    event: Event,
    now_us: int,
    *,
    cancel_grace_us: int = 0,
    repeats_wait: bool = False,
) -> bool:
    """Apply an event to a locked batch. True when its status or ending changed, or whether it is paused.

    Raises BadTransition when the event cannot happen in the batch's state.
    """
    view = BatchView(
        status=batch.status,  # type: ignore[arg-type]  # the column holds what decide() returned
        ending=batch.ending,  # type: ignore[arg-type]
        expires_us=batch.expires_us,
        cancelling_us=batch.cancelling_us,
        undone=batch.total - batch.completed - batch.failed,
        # only as time passes is a batch closed for the want of leases: a commit need not count them
        live_leases=await leases.live_leases(session, batch.id, now_us) if event == "tick" else 0,
        repeats_wait=repeats_wait,
        cancel_grace_us=cancel_grace_us,
    )
    decision = decide(view, event, now_us)
    if decision.refused is not None:
        raise BadTransition(f"batch {batch.id}: {decision.refused}")
    if decision.close_leases:
        await leases.close(session, batch.id, now_us)
    turned = _pause(session, batch, decision.paused, now_us)
    if (decision.status, decision.ending) == (batch.status, batch.ending):
        return turned
    _write(session, batch, decision.status, decision.ending, now_us)
    return True


def _pause(session: AsyncSession, batch: Batch, paused: bool | None, now_us: int) -> bool:
    """True when the batch was not paused and is now, or the other way round."""
    if paused is None or paused == (batch.paused_us is not None):
        return False
    batch.paused_us = now_us if paused else None
    batch.version += 1
    kind = "batch.paused" if paused else "batch.resumed"
    outbox.append(session, batch, kind, {"status": batch.status, "version": batch.version}, now_us)
    log.info(kind, batch=batch.id, status=batch.status, version=batch.version)
    return True


def _write(session: AsyncSession, batch: Batch, status: str, ending: str | None, now_us: int) -> None:
    before = batch.status
    batch.ending = ending
    batch.version += 1
    if status != before:
        batch.status = status
        if status == "in_progress" and batch.in_progress_us is not None:
            batch.finalizing_us = None  # lines were withdrawn: it is at work again, and began when it began
        else:
            setattr(batch, f"{status}_us", now_us)
        payload = {"from": before, "to": status, "version": batch.version}
        outbox.append(session, batch, f"batch.{status}", payload, now_us)
    log.info("batch.moved", batch=batch.id, before=before, status=status, ending=ending, version=batch.version)
