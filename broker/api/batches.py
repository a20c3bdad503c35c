"""Batches, as at OpenAI, and what only a broker can say of them: why there, where, and what it will cost."""

from __future__ import annotations

import re
from typing import Annotated

import msgspec
import structlog
from aiohttp import web
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from sqlalchemy.ext.asyncio import AsyncSession

from broker.api import quote_shapes, shapes
from broker.api.auth import wished_project
from broker.api.batch_view import batch_shapes, whole_batch
from broker.api.problems import bad_request
from broker.api.registry import Call, Route, route
from broker.compliance.pinning import pin_for, seal_pin, store_policy
from broker.control import placements as placed
from broker.control.explain import explanation
from broker.control.quote import quote
from broker.keys import Role
from broker.tables import Project
from jobs import batches, ids
from jobs.clock import MICROSECONDS, db_now
from jobs.tables import Batch
from jobs.types import BatchStatus

log = structlog.get_logger()

MAX_UNIX_SECONDS = 253_402_300_799  # the last second of the year 9999: later is a mistake, e.g. milliseconds
READERS: tuple[Role, ...] = ("submitter", "viewer", "compliance", "finance", "operator")


# One value of a parameter that may be repeated arrives alone.
Repeated = BeforeValidator(lambda given: [given] if isinstance(given, str) else given)
# The name goes into a path within a JSON document, where these characters would end it.
Tag = Annotated[str, Field(pattern=r'^[^="\\\x00]{1,64}=[^\x00]{1,512}$')]


class BatchQuery(BaseModel):
    """OpenAI's list parameters, and two of ours; others are ignored, as there."""

    model_config = ConfigDict(extra="ignore")

    after: str | None = Field(default=None, max_length=64)
    limit: int = Field(default=20, ge=1, le=100)
    status: Annotated[list[BatchStatus], Repeated] = Field(
        default=[], max_length=20, description="only batches with this status; may be repeated: one of these"
    )
    tag: Annotated[list[Tag], Repeated] = Field(
        default=[], max_length=20, description="only batches with this tag, `name=value`; may be repeated: all of these"
    )


async def create(call: Call, body: shapes.BatchCreate) -> shapes.Batch:
    """Create a batch from an uploaded file.

    Repeating is safe: with the same `Idempotency-Key`, or when an SDK retries (`x-stainless-retry-count`), the same
    request answers the same batch.
    """
    project = wished_project(call, body.x_broker.project if body.x_broker else None)
    new = _asked(call, body, project)
    async with call.services.database.transaction() as session:
        await _known(session, project)
    keys = await call.services.objects_of(project)
    async with call.services.database.transaction() as session:
        now_us = await db_now(session)
        pin = await pin_for(session, call.services.settings, project, body.x_broker)
        policy_hash = await store_policy(session, pin.policy, now_us)
        batch, is_new = await batches.create(session, msgspec.structs.replace(new, policy_hash=policy_hash))
        if is_new and keys is not None:
            await keys.add(session, batch.id)
        if is_new:
            await seal_pin(session, call.services, "submit", batch.id, pin, now_us)
        shape = await whole_batch(session, batch)
    if is_new:
        call.services.nudge("validate")
    return shape


def _asked(call: Call, body: shapes.BatchCreate, project: str) -> batches.NewBatch:
    wishes = body.x_broker or shapes.BatchWishes()
    return batches.NewBatch(
        id=ids.batch_id(),
        project=project,
        principal=call.caller.name,
        input_file_id=body.input_file_id,
        endpoint=body.endpoint,
        completion_window=body.completion_window,
        policy_hash="",
        metadata=body.metadata,
        wishes=None if body.x_broker is None else body.x_broker.model_dump(mode="json"),
        deadline_us=deadline_us(wishes.deadline),
        priority=wishes.priority,
        line_order=wishes.order,
        output_expires_s=body.output_expires_after.seconds if body.output_expires_after else None,
        idempotency_key=idempotency_key(call.request),
        retry_count=retry_count(call.request),
    )


def deadline_us(deadline: int | None) -> int | None:
    """A wish's deadline in microseconds. Raises 400 when it is not a time in unix seconds."""
    if deadline is None:
        return None
    if not 0 < deadline <= MAX_UNIX_SECONDS:
        message = f"x_broker.deadline {deadline} is not a time in unix seconds (are these milliseconds?)"
        raise bad_request("invalid_value", message, "x_broker.deadline")
    return deadline * MICROSECONDS


def idempotency_key(request: web.Request) -> str | None:
    """The client's name for this request. Raises 400 when it is not plain text of at most 255 characters."""
    key = request.headers.get("Idempotency-Key")
    if key is not None and not re.fullmatch(r"[ -~]{1,255}", key):
        message = f"Idempotency-Key {key[:40]!r}: send 1 to 255 printable ASCII characters, for example a UUID"
        raise bad_request("invalid_value", message, "Idempotency-Key")
    return key


def retry_count(request: web.Request) -> int:
    """Which attempt of an SDK this is; what is not a number is not an SDK's."""
    text = request.headers.get("x-stainless-retry-count", "")
    return int(text) if re.fullmatch(r"[0-9]{1,4}", text) else 0


async def list_batches(call: Call, query: BatchQuery) -> shapes.BatchList:
    """List batches, newest first."""
    async with call.services.database.transaction() as session:
        page = await batches.list_batches(
            session,
            call.project,
            after=query.after,
            limit=query.limit,
            statuses=query.status,
            tags=dict(each.split("=", 1) for each in query.tag),
        )
        shown = await batch_shapes(session, page)
    return shapes.BatchList.of(shown, has_more=page.has_more)


async def get_batch(call: Call) -> shapes.Batch:
    """A batch: state, counts, tokens, cost, and why it waits."""
    async with call.services.database.transaction() as session:
        return await whole_batch(session, await _mine(session, call))


async def cancel(call: Call) -> shapes.Batch:
    """Cancel a batch: what is in flight may finish; what is done is published."""
    async with call.services.database.transaction() as session:
        batch = await batches.cancel(session, call.project, call.path("batch_id"))
        shape = await whole_batch(session, batch)
    call.services.nudge("answer")
    call.services.nudge("finalise")
    return shape


async def explain(call: Call) -> quote_shapes.Explanation:
    """What the newest plan chose for this batch, what it rejected, and why."""
    async with call.services.database.transaction() as session:
        batch = await _mine(session, call)
        return await explanation(session, batch.id)


async def list_placements(call: Call) -> shapes.Placements:
    """Every rental that serves or served this batch: place, worker, lines, cost."""
    async with call.services.database.transaction() as session:
        batch = await _mine(session, call)
        return shapes.Placements(data=await placed.placements(session, batch.id))


async def create_quote(call: Call, body: quote_shapes.QuoteCreate) -> quote_shapes.Quote:
    """A dry run of a batch: cost, end, placement, and what was rejected; nothing is created or held."""
    deadline_us(body.x_broker.deadline if body.x_broker else None)
    project = wished_project(call, body.x_broker.project if body.x_broker else None)
    async with call.services.database.transaction() as session:
        await _known(session, project)
    return await quote(
        call.services,
        project=project,
        file_id=body.input_file_id,
        endpoint=body.endpoint,
        window=body.completion_window,
        wishes=body.x_broker,
    )


async def _known(session: AsyncSession, project: str) -> None:
    """Raises 400 for a project that there is not: a mistyped name must not make one."""
    if await session.get(Project, project) is None:
        message = f"x_broker.project {project!r} does not exist; a project is made with its first key"
        raise bad_request("project_not_found", message, "x_broker.project")


async def _mine(session: AsyncSession, call: Call) -> Batch:
    return await batches.get(session, call.project, call.path("batch_id"))


IDEMPOTENCY = {"Idempotency-Key": "the same key with the same request answers the same batch"}

ROUTES: tuple[Route, ...] = (
    route("POST", "/v1/batches", create, tag="batches", roles=("submitter",), errors=(422,), headers=IDEMPOTENCY),
    route("GET", "/v1/batches", list_batches, tag="batches", roles=READERS),
    route("GET", "/v1/batches/{batch_id}", get_batch, tag="batches", roles=READERS),
    route("POST", "/v1/batches/{batch_id}/cancel", cancel, tag="batches", roles=("submitter",), errors=(422,)),
    route("GET", "/v1/batches/{batch_id}/explain", explain, tag="batches", roles=READERS),
    route("GET", "/v1/batches/{batch_id}/placements", list_placements, tag="batches", roles=READERS),
    route("POST", "/v1/quotes", create_quote, tag="quotes", roles=("submitter",)),
)
