"""What may still be changed of a batch that has not ended: whether it is paused, its limit, its priority, its deadline."""

from __future__ import annotations

from typing import Any

import msgspec
import structlog
from sqlalchemy.ext.asyncio import AsyncSession

from jobs import outbox
from jobs.batches import get
from jobs.clock import MICROSECONDS, db_now
from jobs.errors import BadBatch, BadTransition
from jobs.tables import Batch
from jobs.transitions import locked, transition
from jobs.window import MAX_WINDOW_S, expires_us

log = structlog.get_logger()


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """New values; UNSET leaves what is. None as `max_usd` takes the limit away, None as `deadline_us` goes back to the
    completion window. `max_usd` is decimal USD; this room keeps it and knows nothing of money."""

    max_usd: str | msgspec.UnsetType | None = msgspec.UNSET
    priority: int | msgspec.UnsetType = msgspec.UNSET
    deadline_us: int | msgspec.UnsetType | None = msgspec.UNSET


async def pause(session: AsyncSession, project: str, batch_id: str) -> Batch:
    """From now on no line of the batch starts; what is in flight is finished. The deadline goes on. Twice is once.

    Raises BatchNotFound, and BadTransition when the batch has ended or is about to.
    """
    return await _turn(session, project, batch_id, "pause")


async def resume(session: AsyncSession, project: str, batch_id: str) -> Batch:
    """Lines may start again, where they stopped. Twice is once. Raises as `pause`."""
    return await _turn(session, project, batch_id, "resume")


async def change(session: AsyncSession, project: str, batch_id: str, wanted: Change) -> Batch:
    """Set what `wanted` names. A change to what already is changes nothing and is no event.

    Raises BatchNotFound, BadTransition when the batch has ended or is about to, and BadBatch for a deadline that is past or
    more than 30 days after the batch was made.
    """
    batch = await _open(session, project, batch_id, "changed")
    now_us = await db_now(session)
    before = _changeable(batch)
    if wanted.max_usd is not msgspec.UNSET:
        batch.wishes = {**(batch.wishes or {}), "max_usd": wanted.max_usd}
    if wanted.priority is not msgspec.UNSET:
        batch.priority = wanted.priority
    if wanted.deadline_us is not msgspec.UNSET:
        batch.expires_us = changed_expiry_us(batch, wanted.deadline_us, now_us)
        batch.deadline_us = wanted.deadline_us
    after = _changeable(batch)
    changed = {name: value for name, value in after.items() if value != before[name]}
    if changed:
        batch.version += 1
        outbox.append(session, batch, "batch.changed", {**_told(changed), "version": batch.version}, now_us)
        log.info("batch.changed", batch=batch.id, version=batch.version, **changed)
    return batch


def changed_expiry_us(batch: Batch, deadline_us: int | None, now_us: int) -> int:
    """When the batch expires with a new deadline: then, also when that is later than its window. Raises BadBatch."""
    if deadline_us is None:
        by_window = expires_us(batch.created_us, batch.completion_window, None)
        if by_window <= now_us:
            raise BadBatch(
                f"without a deadline the batch would expire at {by_window // MICROSECONDS}, the end of its window of "
                f"{batch.completion_window}, which is past; name a deadline",
                param="x_broker.deadline",
            )
        return by_window
    latest_us = batch.created_us + MAX_WINDOW_S * MICROSECONDS
    if not now_us < deadline_us <= latest_us:
        raise BadBatch(
            f"deadline {deadline_us // MICROSECONDS} is not after now ({now_us // MICROSECONDS}) and at most 30 days after "
            f"the batch was made ({latest_us // MICROSECONDS}); name one between these, in unix seconds",
            param="x_broker.deadline",
        )
    return deadline_us


def _changeable(batch: Batch) -> dict[str, Any]:
    return {
        "max_usd": (batch.wishes or {}).get("max_usd"),
        "priority": batch.priority,
        "expires_us": batch.expires_us,
        "deadline_us": batch.deadline_us,
    }


def _told(changed: dict[str, Any]) -> dict[str, Any]:
    """As the API names it, with its times in unix seconds."""
    names = {"expires_us": "expires_at", "deadline_us": "deadline"}
    times = {
        name: None if changed[us] is None else changed[us] // MICROSECONDS
        for us, name in names.items()
        if us in changed
    }
    return {name: value for name, value in changed.items() if name not in names} | times


async def _turn(session: AsyncSession, project: str, batch_id: str, event: str) -> Batch:
    batch = await _open(session, project, batch_id, f"{event}d")
    await transition(session, batch, "pause" if event == "pause" else "resume", await db_now(session))
    return batch


async def _open(session: AsyncSession, project: str, batch_id: str, done: str) -> Batch:
    """The batch, locked. Raises BatchNotFound, and BadTransition when it takes no changes any more."""
    batch = await locked(session, (await get(session, project, batch_id)).id)
    if batch.status in ("validating", "in_progress") and batch.ending is None:
        return batch
    closed = f" and about to be {batch.ending}" if batch.ending and batch.ending != batch.status else ""
    raise BadTransition(
        f"batch {batch.id} is {batch.status}{closed}; only a batch that is validating or in progress can be {done}"
    )
