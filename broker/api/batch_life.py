"""What may be done to a batch while it lives: pause, resume, change its limit, priority or deadline."""

from __future__ import annotations

import msgspec

from broker.api import shapes
from broker.api.batch_view import whole_batch
from broker.api.batches import deadline_us
from broker.api.life_shapes import BatchChanges, BatchPatch
from broker.api.registry import Call, Route, route
from broker.control.limit_change import limit_changed
from jobs import changes
from jobs.clock import db_now


async def pause(call: Call) -> shapes.Batch:
    """Pause a batch: no further line starts; what is in flight is finished and kept.

    Its machines are given back when nobody else needs them. The deadline goes on. Pausing twice is one pause.
    """
    async with call.services.database.transaction() as session:
        batch = await changes.pause(session, call.project, call.path("batch_id"))
        shape = await whole_batch(session, batch)
    call.services.nudge("plan")
    return shape


async def resume(call: Call) -> shapes.Batch:
    """Resume a paused batch where it stopped. Resuming twice is one resumption."""
    async with call.services.database.transaction() as session:
        batch = await changes.resume(session, call.project, call.path("batch_id"))
        shape = await whole_batch(session, batch)
    call.services.nudge("plan")
    return shape


async def change(call: Call, body: BatchPatch) -> shapes.Batch:
    """Change the limit, the priority or the deadline of a batch that has not ended.

    A raised `max_usd` lets a batch go on that was stopped at its limit; one below what is spent stops it.
    """
    wanted = _change(body.x_broker)
    async with call.services.database.transaction() as session:
        batch = await changes.change(session, call.project, call.path("batch_id"), wanted)
        if wanted.max_usd is not msgspec.UNSET:
            await limit_changed(session, batch, await db_now(session))
        shape = await whole_batch(session, batch)
    for loop in ("plan", "accrue", "finalise"):
        call.services.nudge(loop)
    return shape


def _change(body: BatchChanges) -> changes.Change:
    """Only what was sent: null is a value, left away is not. Raises 400 for a deadline that is no time."""
    sent = body.model_fields_set
    return changes.Change(
        max_usd=body.max_usd if "max_usd" in sent else msgspec.UNSET,
        priority=body.priority if "priority" in sent else msgspec.UNSET,
        deadline_us=deadline_us(body.deadline) if "deadline" in sent else msgspec.UNSET,
    )


ROUTES: tuple[Route, ...] = (
    route("POST", "/v1/batches/{batch_id}/pause", pause, tag="batches", roles=("submitter", "operator"), errors=(422,)),
    route("POST", "/v1/batches/{batch_id}/resume", resume, tag="batches", roles=("submitter", "operator"), errors=(422,)),
    route("PATCH", "/v1/batches/{batch_id}", change, tag="batches", roles=("submitter",), errors=(422,)),
)  # fmt: skip
