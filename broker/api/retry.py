"""Doing a batch's failed and unfinished lines again, as a new batch."""

from __future__ import annotations

import msgspec
from sqlalchemy.ext.asyncio import AsyncSession

from broker.api import result_shapes as shapes
from broker.api.batch_view import whole_batch
from broker.api.batches import IDEMPOTENCY, deadline_us, idempotency_key, retry_count
from broker.api.files import default_lifetime_s
from broker.api.problems import Problem, bad_request
from broker.api.registry import Call, Route, route
from broker.api.shapes import Batch as BatchShape
from broker.api.shapes import BatchWishes
from broker.compliance import destruction
from broker.compliance.pinning import pin_for, seal_pin, store_policy
from jobs import batches, files, ids, retries
from jobs.clock import MICROSECONDS, db_now
from jobs.errors import FileGone, InputGone, JobsError
from jobs.final_plan import FinalPlan, load_plan
from jobs.keys import input_key
from jobs.objects import Stored
from jobs.part_rows import PartRows
from jobs.retries import Again
from jobs.tables import Batch
from solver.errors import SolverError
from solver.residency.classes import raised


async def retry(call: Call, body: shapes.RetryCreate) -> shapes.RetryBatch:
    """Do again what a batch that has ended did not answer: a new batch of its failed, expired and cancelled lines.

    Everything else is as it was (endpoint, window, metadata, wishes), but for a deadline that has passed, and for what
    the body changes; custom_ids stay, so the outputs of both can be put together. Lines that were refused at intake are
    left out unless `invalid` is true. Repeating is safe, as when a batch is created.
    """
    async with call.services.database.transaction() as session:
        batch = await batches.get(session, call.project, call.path("batch_id"))
        wanted = retries.again(batch, body.which, with_invalid=body.invalid)
        new = _asked(call, batch, body, await db_now(session))
        earlier = await batches.repeated(session, new)
        if earlier is not None:
            return _shape(await whole_batch(session, earlier), wanted)
        await _require_input(call, session, batch)
        plan = await load_plan(session, batch, ending=batch.ending)  # type: ignore[arg-type]  # what decide() returned
    stored = await _compose(call, plan, new.input_file_id, wanted)
    try:
        made = await _create(call, batch, new, stored, wanted)
    except (Problem, JobsError, SolverError):
        # refused for certain; after a lost answer to COMMIT the batch may stand, and garbage collection finds out
        await call.services.store.delete(stored.key)
        raise
    if made.input_file_id != new.input_file_id:  # a repeat was faster
        await call.services.store.delete(stored.key)
    call.services.nudge("validate")
    return made


async def _require_input(call: Call, session: AsyncSession, batch: Batch) -> None:
    try:
        await files.get(session, call.project, batch.input_file_id)
    except FileGone as gone:
        message = f"{gone}, so the lines of batch {batch.id} cannot be read again; upload them in a new file"
        raise InputGone(message, param="batch_id") from gone


def _asked(call: Call, batch: Batch, body: shapes.RetryCreate, now_us: int) -> batches.NewBatch:
    wishes = _wishes(batch, body, now_us)
    return batches.NewBatch(
        id=ids.batch_id(),
        project=batch.project,
        principal=call.caller.name,
        input_file_id=ids.file_id(),
        endpoint=batch.endpoint,
        completion_window=body.completion_window or batch.completion_window,
        policy_hash="",
        metadata=batch.metadata_ if body.metadata is None else body.metadata,
        wishes=wishes.model_dump(mode="json"),
        deadline_us=deadline_us(wishes.deadline),
        priority=wishes.priority,
        line_order=wishes.order,
        output_expires_s=batch.output_expires_s,
        idempotency_key=idempotency_key(call.request),
        retry_count=retry_count(call.request),
        retry_of=batch.id,
        # the same request makes another file each time, so it is known by what was asked
        identity=f"retry {batch.id} {body.model_dump_json()}",
    )


def _wishes(batch: Batch, body: shapes.RetryCreate, now_us: int) -> BatchWishes:
    """The batch's own wishes, each replaced by the one that the body names; but the class of its data is raised only."""
    named = {} if body.x_broker is None else body.x_broker.model_dump(mode="json", exclude_unset=True)
    if named.get("project") not in (None, batch.project):
        message = (
            f"x_broker.project is {named['project']!r}; a batch is done again in its own project {batch.project!r}"
        )
        raise bad_request("invalid_value", message, "x_broker.project")
    deadline_us = batch.deadline_us if batch.deadline_us is not None and batch.deadline_us > now_us else None
    own = {
        **(batch.wishes or {}),
        # these two may have been changed since they were wished for
        "priority": batch.priority,
        "deadline": None if deadline_us is None else deadline_us // MICROSECONDS,
    }
    wishes = {**own, **named}
    if own.get("data_class") and wishes.get("data_class") is not None:
        wishes["data_class"] = raised(own["data_class"], wishes["data_class"])  # the lines are what they were
    elif own.get("data_class"):
        wishes["data_class"] = own["data_class"]
    return BatchWishes.model_validate(wishes)


async def _compose(call: Call, plan: FinalPlan, file_id: str, wanted: Again) -> Stored:
    store = call.services.store
    await call.services.begin_objects(plan.project, file_id)
    rows = PartRows(call.services.database.transaction, plan)
    return await store.put_stream(input_key(plan.project, file_id), retries.input_again(store, plan, rows, wanted))


async def _create(call: Call, batch: Batch, new: batches.NewBatch, stored: Stored, wanted: Again) -> shapes.RetryBatch:
    """The composed file and its batch, in one transaction; or the batch that a faster repeat has made meanwhile."""
    lifetime_s = await default_lifetime_s(call, batch.project)
    keys = await call.services.objects_of(batch.project)
    async with call.services.database.transaction() as session:
        earlier = await batches.repeated(session, new)
        if earlier is not None:
            return _shape(await whole_batch(session, earlier), wanted)
        await destruction.require_key(session, new.input_file_id)
        now_us = await db_now(session)
        await files.create(
            session,
            file_id=new.input_file_id,
            project=batch.project,
            purpose="batch",
            filename=f"{batch.id}_retry.jsonl",
            size=stored.size,
            sha256=stored.sha256,
            object_key=stored.key,
            expires_us=None if lifetime_s is None else now_us + lifetime_s * MICROSECONDS,
        )
        wishes = BatchWishes.model_validate(new.wishes)
        pin = await pin_for(session, call.services.settings, batch.project, wishes)
        policy_hash = await store_policy(session, pin.policy, now_us)
        made, is_new = await batches.create(session, msgspec.structs.replace(new, policy_hash=policy_hash))
        if is_new and keys is not None:
            await keys.add(session, made.id)
        if is_new:
            await seal_pin(session, call.services, "submit", made.id, pin, now_us)
        return _shape(await whole_batch(session, made), wanted)


def _shape(batch: BatchShape, wanted: Again) -> shapes.RetryBatch:
    retried = shapes.Retried(
        failed=wanted.failed,
        undone=wanted.undone,
        invalid=wanted.invalid,
        invalid_left_out=wanted.invalid_left_out,
    )
    return shapes.RetryBatch.of(batch, retried)


ROUTES: tuple[Route, ...] = (
    route("POST", "/v1/batches/{batch_id}/retry", retry, tag="batches", roles=("submitter",), errors=(422,),
          headers=IDEMPOTENCY, is_body_optional=True),
)  # fmt: skip
