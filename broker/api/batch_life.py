"""What may be done to a batch while it lives: pause, resume, change its limit, priority or deadline; approve or reject one
that waits for a second person."""

from __future__ import annotations

import msgspec
from sqlalchemy.ext.asyncio import AsyncSession

from broker.api import shapes
from broker.api.batch_view import whole_batch
from broker.api.batches import deadline_us
from broker.api.life_shapes import BatchChanges, BatchPatch, Rejection
from broker.api.problems import conflict, forbidden
from broker.api.registry import Call, Route, route
from broker.approvals import Outcome, approval_of, decide, objection
from broker.control.limit_change import limit_changed, unapproved
from broker.keys import Role
from jobs import batches, changes
from jobs.clock import db_now
from jobs.tables import Batch
from jobs.transitions import locked
from jobs.types import Finding


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
        before = await _permitted(session, call, wanted)
        batch = await changes.change(session, call.project, call.path("batch_id"), wanted)
        if (batch.wishes or {}).get("max_usd") != before:
            await limit_changed(session, batch, await db_now(session))
        shape = await whole_batch(session, batch)
    for loop in ("validate", "plan", "accrue", "finalise"):
        call.services.nudge(loop)
    return shape


async def _permitted(session: AsyncSession, call: Call, wanted: changes.Change) -> str | None:
    """The limit before the change. Raises 403 for a new one that a second person would have to approve."""
    batch = await batches.get(session, call.project, call.path("batch_id"))
    before: str | None = (batch.wishes or {}).get("max_usd")
    if wanted.max_usd is msgspec.UNSET:
        return before
    reason = await unapproved(session, call.services.settings, batch, wanted.max_usd)
    if reason is not None:
        message = f"x_broker.max_usd {wanted.max_usd}: {reason}; cancel this batch and submit it anew with that limit."
        raise forbidden("approval_required", message)
    return before


async def approve(call: Call) -> shapes.Batch:
    """Approve a batch that waits for a second person. Whoever submitted it cannot. Approving twice is one approval."""
    async with call.services.database.transaction() as session:
        batch = await _decided(session, call, "approved")
        shape = await whole_batch(session, batch)
    call.services.nudge("validate")
    return shape


async def reject(call: Call, body: Rejection) -> shapes.Batch:
    """Reject a batch that waits for a second person: it fails, naming who rejected it and why. Twice is once."""
    async with call.services.database.transaction() as session:
        batch = await _decided(session, call, "rejected")
        finding = Finding(
            code="approval_rejected",
            message=f"{call.caller.name} rejected it: {body.reason or 'no reason given'}",
            param="x_broker.max_usd",
        )
        batch = await batches.fail(session, batch.id, [finding])
        shape = await whole_batch(session, batch)
    return shape


async def _decided(session: AsyncSession, call: Call, outcome: Outcome) -> Batch:
    """The batch, with this caller's decision about it written down, once.

    Raises 404, 403 for its proposer, and 422 when it waits for no approval or was decided otherwise.
    """
    batch = await batches.get(session, call.project, call.path("batch_id"))
    batch = await locked(session, batch.id)
    approval = await approval_of(session, batch.id)
    if approval is not None and approval.outcome == outcome:
        return batch
    if approval is None or approval.outcome is not None or batch.status != "validating" or batch.ending is not None:
        was = f" and was {approval.outcome} by {approval.decided_by}" if approval and approval.outcome else ""
        raise conflict("not_awaiting_approval", f"Batch {batch.id} is {batch.status}{was}; it waits for no approval.")
    against = objection(approver=call.caller.name, proposer=approval.proposer)
    if against is not None:
        raise forbidden("own_proposal", f"Batch {batch.id}: {against}.")
    await decide(session, approval, batch, outcome, by=call.caller.name, now_us=await db_now(session))
    return batch


def _change(body: BatchChanges) -> changes.Change:
    """Only what was sent: null is a value, left away is not. Raises 400 for a deadline that is no time."""
    sent = body.model_fields_set
    return changes.Change(
        max_usd=body.max_usd if "max_usd" in sent else msgspec.UNSET,
        priority=body.priority if "priority" in sent else msgspec.UNSET,
        deadline_us=deadline_us(body.deadline) if "deadline" in sent else msgspec.UNSET,
    )


APPROVERS: tuple[Role, ...] = ("operator", "finance")

ROUTES: tuple[Route, ...] = (
    route("POST", "/v1/batches/{batch_id}/approve", approve, tag="batches", roles=APPROVERS, errors=(422,)),
    route("POST", "/v1/batches/{batch_id}/reject", reject, tag="batches", roles=APPROVERS, errors=(422,),
          is_body_optional=True),
    route("POST", "/v1/batches/{batch_id}/pause", pause, tag="batches", roles=("submitter", "operator"), errors=(422,)),
    route("POST", "/v1/batches/{batch_id}/resume", resume, tag="batches", roles=("submitter", "operator"), errors=(422,)),
    route("PATCH", "/v1/batches/{batch_id}", change, tag="batches", roles=("submitter",), errors=(422,)),
)  # fmt: skip
