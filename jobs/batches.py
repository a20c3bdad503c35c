"""Batches: creating, reading, and moving them from one state to the next."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Literal, get_args

import msgspec
import structlog
from sqlalchemy import and_, case, exists, func, or_, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from jobs import files, ids, outbox, ranges
from jobs.clock import MICROSECONDS, db_now
from jobs.errors import BadBatch, BadCursor, BadTransition, BatchNotFound, IdempotencyMismatch
from jobs.files import Page, page_of
from jobs.locks import serialise
from jobs.tables import Batch, BatchRequest, Shard
from jobs.transitions import locked, transition
from jobs.types import TERMINAL, Endpoint, Finding, Reserved, ShardSpec, Validation
from jobs.window import expires_us

log = structlog.get_logger()

METADATA_PAIRS, METADATA_KEY_CHARS, METADATA_VALUE_CHARS = 16, 64, 512
RETRY_MEMORY_US = 15 * 60 * MICROSECONDS


class NewBatch(msgspec.Struct, frozen=True, kw_only=True):
    """A request to create a batch. `wishes` is its `x_broker` as it came; what the room itself needs stands beside it.

    `output_expires_s` is how long the batch's files live, from when each is made; None is until they are deleted.
    `idempotency_key` is the client's header. `retry_count` is the SDK's `x-stainless-retry-count`: a repeat (≥ 1) of
    the same request by the same principal within 15 minutes is the same batch, although the SDK sends no key.
    `identity` says what makes two requests the same where the input file is made anew by each (`retry_of` a batch).
    """

    id: str
    project: str
    principal: str
    input_file_id: str
    endpoint: str
    completion_window: str
    policy_hash: str
    metadata: dict[str, str] | None = None
    wishes: dict[str, Any] | None = None
    deadline_us: int | None = None
    priority: int = 0
    line_order: Literal["input", "completion"] = "input"
    output_expires_s: int | None = None
    idempotency_key: str | None = None
    retry_count: int = 0
    retry_of: str | None = None
    identity: str | None = None


async def create(session: AsyncSession, new: NewBatch) -> tuple[Batch, bool]:
    """The batch, and whether it is new (False: this request was already answered with this batch).

    Raises FileNotFound, FileGone, BadBatch (naming the parameter), and IdempotencyMismatch when the key was used with
    another request.
    """
    earlier = await repeated(session, new)
    if earlier is not None:
        log.info("batch.repeated", batch=earlier.id, project=new.project)
        return earlier, False
    body_sha256, now_us = _body_sha256(new), await db_now(session)
    file = await files.get(session, new.project, new.input_file_id, lock="to read", param="input_file_id")
    if file.purpose != "batch":
        raise BadBatch(
            f"file {file.id} has purpose {file.purpose!r}; upload the input with purpose 'batch'", param="input_file_id"
        )
    _check(new)
    batch = Batch(
        id=new.id,
        project=new.project,
        principal=new.principal,
        endpoint=new.endpoint,
        input_file_id=file.id,
        input_key=file.object_key,
        completion_window=new.completion_window,
        status="validating",
        created_us=now_us,
        expires_us=expires_us(now_us, new.completion_window, new.deadline_us),
        deadline_us=new.deadline_us,
        metadata_=new.metadata,
        wishes=new.wishes,
        policy_hash=new.policy_hash,
        priority=new.priority,
        line_order=new.line_order,
        output_expires_s=new.output_expires_s,
        retry_of=new.retry_of,
    )
    session.add(batch)
    await session.flush()
    session.add(
        BatchRequest(
            batch_id=batch.id,
            project=new.project,
            principal=new.principal,
            key=new.idempotency_key,
            body_sha256=body_sha256,
            created_us=now_us,
        )
    )
    outbox.append(session, batch, "batch.validating", {"from": None, "to": "validating", "version": 0}, now_us)
    log.info("batch.created", batch=batch.id, project=new.project, file=file.id, expires_us=batch.expires_us)
    return batch, True


async def repeated(session: AsyncSession, new: NewBatch) -> Batch | None:
    """The batch that this request was answered with before; None when it is new. Until the transaction ends, a repeat
    on another replica waits here. Raises IdempotencyMismatch when the key was used with another request."""
    body_sha256 = _body_sha256(new)
    await serialise(session, "batch", new.project, new.idempotency_key or f"{new.principal}\n{body_sha256}")
    return await _earlier(session, new, body_sha256, await db_now(session))


def _body_sha256(new: NewBatch) -> str:
    if new.identity is not None:
        return hashlib.sha256(new.identity.encode()).hexdigest()
    body = (new.input_file_id, new.endpoint, new.completion_window, new.metadata, new.wishes, new.output_expires_s)
    return hashlib.sha256(msgspec.json.encode(body, order="deterministic")).hexdigest()


async def _earlier(session: AsyncSession, new: NewBatch, body_sha256: str, now_us: int) -> Batch | None:
    statement = select(BatchRequest).where(col(BatchRequest.project) == new.project)
    if new.idempotency_key is not None:
        statement = statement.where(col(BatchRequest.key) == new.idempotency_key)
    elif new.retry_count > 0:
        statement = statement.where(
            col(BatchRequest.principal) == new.principal,
            col(BatchRequest.body_sha256) == body_sha256,
            col(BatchRequest.created_us) > now_us - RETRY_MEMORY_US,
        )
    else:
        return None
    request = await session.scalar(statement.order_by(col(BatchRequest.created_us).desc()).limit(1))
    if request is None:
        return None
    if request.body_sha256 != body_sha256:
        raise IdempotencyMismatch(
            f"idempotency key {new.idempotency_key!r} was used for batch {request.batch_id} with a different request; "
            "use a new key for a new request"
        )
    return await session.get_one(Batch, request.batch_id)


def _check(new: NewBatch) -> None:
    if new.endpoint not in get_args(Endpoint):
        raise BadBatch(f"endpoint {new.endpoint!r} is not one of {', '.join(get_args(Endpoint))}", param="endpoint")
    metadata = new.metadata or {}
    if len(metadata) > METADATA_PAIRS:
        raise BadBatch(f"metadata has {len(metadata)} pairs; at most {METADATA_PAIRS} fit", param="metadata")
    for key, value in metadata.items():
        if len(key) > METADATA_KEY_CHARS:
            raise BadBatch(
                f"metadata key {key[:20]!r}… has {len(key)} characters; at most {METADATA_KEY_CHARS} fit",
                param="metadata",
            )
        if len(value) > METADATA_VALUE_CHARS:
            raise BadBatch(
                f"metadata value of {key!r} has {len(value)} characters; at most {METADATA_VALUE_CHARS} fit",
                param="metadata",
            )


async def get(session: AsyncSession, project: str, batch_id: str) -> Batch:
    """Raises BatchNotFound, also for another project's batch."""
    batch = await session.get(Batch, batch_id)
    if batch is None or batch.project != project:
        raise BatchNotFound(f"no batch {batch_id!r} in this project", param="batch_id")
    return batch


async def list_batches(
    session: AsyncSession,
    project: str | None,
    *,
    after: str | None = None,
    limit: int = 20,
    statuses: Sequence[str] = (),
    tags: Mapping[str, str] | None = None,
) -> Page[Batch]:
    """Newest first, older than `after`. Project None lists all projects (operators). Only batches with one of `statuses` and
    all of `tags`, where any are given; no name of a tag has quotes or backslashes in it.

    Raises BadCursor when there is no batch `after` among them.
    """
    statement = select(Batch)
    if project is not None:
        statement = statement.where(col(Batch.project) == project)
    if after is not None:
        cursor = await session.get(Batch, after)
        if cursor is None or project not in (None, cursor.project):
            raise BadCursor(f"after is {after!r}, which is no batch here; use the last id of a page", param="after")
        statement = statement.where(col(Batch.id) < after)
    if statuses:
        statement = statement.where(col(Batch.status).in_(statuses))
    for name, value in (tags or {}).items():
        statement = statement.where(col(Batch.wishes)[("tags", name)].as_string() == value)
    rows = await session.scalars(statement.order_by(col(Batch.id).desc()).limit(limit + 1))
    return page_of(list(rows), limit)


async def active_batches(session: AsyncSession, statuses: Sequence[str] | None = None) -> list[Batch]:
    """All batches that have not ended, oldest first; or those with one of `statuses`."""
    wanted = col(Batch.status).in_(statuses) if statuses is not None else col(Batch.status).not_in(TERMINAL)
    return list(await session.scalars(select(Batch).where(wanted).order_by(col(Batch.id))))


async def closed_batches(session: AsyncSession) -> list[str]:
    """Ids of the batches that wait for the finaliser, oldest first."""
    statement = select(col(Batch.id)).where(col(Batch.ending).is_not(None), col(Batch.status).not_in(TERMINAL))
    return list(await session.scalars(statement.order_by(col(Batch.id))))


async def begin(
    session: AsyncSession,
    batch_id: str,
    validation: Validation,
    reserved: Reserved | None = None,
    *,
    model: str | None = None,
) -> Batch:
    """Validation found nothing: insert the shards and start. A batch that was cancelled or expired meanwhile stays so.

    `model` is the profile that shall serve it; by default the one that has the name that the lines have. No worker is
    given the `reserved` lines; the caller commits own parts for them (jobs/own_parts.py).

    Beginning twice changes nothing. Raises BatchNotFound, and ValueError when there are findings (use `fail`).
    """
    if validation.findings or validation.model is None:
        raise ValueError(f"batch {batch_id}: the validation has {validation.findings_total} findings")
    batch = await locked(session, batch_id)
    if batch.status != "validating":
        return batch
    batch.model = model or validation.model
    batch.asked_model = validation.model
    batch.total = validation.lines
    batch.input_tokens = validation.input_tokens
    batch.output_tokens = validation.output_tokens
    session.add_all(_shards(batch.id, validation.shards, reserved or Reserved()))
    await session.flush()
    await transition(session, batch, "validated", await db_now(session))
    return batch


def _shards(batch_id: str, specs: Sequence[ShardSpec], reserved: Reserved) -> Iterator[Shard]:
    for spec in specs:
        stop = spec.first_idx + spec.lines
        mine = ranges.within(reserved.lines, spec.first_idx, stop)
        requests = spec.lines - ranges.count(ranges.within(reserved.invalid, spec.first_idx, stop))
        yield Shard(
            id=ids.shard_id(batch_id, spec.index),
            batch_id=batch_id,
            number=spec.index,
            first_idx=spec.first_idx,
            lines=spec.lines,
            start=spec.start,
            stop=spec.stop,
            sha256=spec.sha256,
            # as if all lines were requests, since what is left is estimated in proportion to lines
            input_tokens=spec.input_tokens * spec.lines // max(1, requests),
            output_tokens=spec.output_tokens * spec.lines // max(1, requests),
            done=[],
            in_flight=[],
            suspects={},
            prefix=spec.prefix,
            reserved=[list(pair) for pair in mine],
            reserved_lines=ranges.count(mine),
            follows={str(line): reserved.follows[line] for line in ranges.lines_of(mine) if line in reserved.follows},
        )


async def fail(session: AsyncSession, batch_id: str, findings: Sequence[Finding], total: int | None = None) -> Batch:
    """Validation (of the file, or of residency and budget) refuses the batch: failed, with these errors.

    `total` is how many findings there were when not all are given. A batch that is past validation stays as it is.
    Raises BatchNotFound, and ValueError without findings.
    """
    if not findings:
        raise ValueError(f"batch {batch_id}: a batch fails with at least one finding")
    batch = await locked(session, batch_id)
    if batch.status != "validating":
        return batch
    batch.errors = [msgspec.to_builtins(finding) for finding in findings]
    batch.errors_total = total if total is not None else len(findings)
    await transition(session, batch, "invalid", await db_now(session))
    return batch


async def cancel(session: AsyncSession, project: str, batch_id: str) -> Batch:
    """Start cancelling: no new leases; what is in flight may finish and commit. Cancelling again changes nothing.

    Raises BatchNotFound, and BadTransition when the batch has ended or is being finalised.
    """
    batch = await get(session, project, batch_id)
    batch = await locked(session, batch.id)
    if batch.status in TERMINAL and batch.status != "cancelled":
        raise BadTransition(f"batch {batch.id} is {batch.status}; only a batch that has not ended can be cancelled")
    await transition(session, batch, "cancel", await db_now(session))
    return batch


async def drained_batches(session: AsyncSession) -> list[Batch]:
    """The cancelled batches without a live lease that are not closed yet, oldest first."""
    leased = exists().where(
        col(Shard.batch_id) == col(Batch.id),
        col(Shard.state) == "leased",
        col(Shard.lease_expires_us) > await db_now(session),
    )
    statement = select(Batch).where(col(Batch.status) == "cancelling", col(Batch.ending).is_(None), ~leased)
    return list(await session.scalars(statement.order_by(col(Batch.id))))


async def advance(
    session: AsyncSession, *, cancel_grace_s: float, repeated: Collection[str] | None = None
) -> list[str]:
    """Let time pass: close what has expired, and cancelled batches that are drained or out of grace.

    `repeated` are the cancelled batches whose repeats have been answered as far as their leaders are; any other keeps its
    grace, though nobody works for it. None: all are. Returns the ids of the batches that moved. Their results can be
    composed now.
    """
    now_us = await db_now(session)
    due = select(col(Batch.id)).where(
        col(Batch.ending).is_(None),
        or_(
            col(Batch.status) == "cancelling",
            col(Batch.status).in_(("validating", "in_progress")) & (col(Batch.expires_us) <= now_us),
        ),
    )
    moved = []
    for batch_id in list(await session.scalars(due.order_by(col(Batch.id)))):
        batch = await locked(session, batch_id)
        repeats_wait = repeated is not None and batch_id not in repeated
        grace_us = int(cancel_grace_s * MICROSECONDS)
        if await transition(session, batch, "tick", now_us, cancel_grace_us=grace_us, repeats_wait=repeats_wait):
            moved.append(batch_id)
    return moved


class Remaining(msgspec.Struct, frozen=True, kw_only=True):
    """What of a batch is still to be answered by workers: reserved lines are none of it.

    Tokens are the shards' estimates, and `input_bytes` the bytes of their lines, in proportion to their open lines.
    """

    lines: int
    input_tokens: int
    output_tokens: int
    input_bytes: int = 0


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """How far a batch is. `lines_reserved` are open and no worker's; `leases` are not expired; `shards_done` of `shards`."""

    lines_done: int
    lines_reserved: int
    shards: int
    shards_done: int
    leases: int


async def remaining(session: AsyncSession, batch_id: str) -> Remaining:
    """All zero for a batch without open lines (also before validation)."""
    closed = col(Shard.done_lines) + col(Shard.reserved_lines)
    size = col(Shard.stop) - col(Shard.start)
    statement = select(col(Shard.lines), closed, col(Shard.input_tokens), col(Shard.output_tokens), size).where(
        col(Shard.batch_id) == batch_id, col(Shard.state) != "done"
    )
    lines = input_tokens = output_tokens = input_bytes = 0
    for of_shard, closed_lines, shard_input, shard_output, shard_bytes in await session.execute(statement):
        left = of_shard - closed_lines
        lines += left
        input_tokens += -(-shard_input * left // of_shard)
        output_tokens += -(-shard_output * left // of_shard)
        input_bytes += -(-shard_bytes * left // of_shard)
    return Remaining(lines=lines, input_tokens=input_tokens, output_tokens=output_tokens, input_bytes=input_bytes)


async def progress(session: AsyncSession, batch_ids: Sequence[str]) -> dict[str, Progress]:
    """One entry for each id; all zero for a batch that has no shards yet."""
    now_us = await db_now(session)
    is_done = case((col(Shard.state) == "done", 1), else_=0)
    is_live = case((and_(col(Shard.state) == "leased", col(Shard.lease_expires_us) > now_us), 1), else_=0)
    statement = (
        select(
            col(Shard.batch_id),
            func.sum(Shard.done_lines),
            func.sum(Shard.reserved_lines),
            func.count(),
            func.sum(is_done),
            func.sum(is_live),
        )
        .where(col(Shard.batch_id).in_(batch_ids))
        .group_by(col(Shard.batch_id))
    )
    nothing = Progress(lines_done=0, lines_reserved=0, shards=0, shards_done=0, leases=0)
    found = dict.fromkeys(batch_ids, nothing)
    for batch_id, lines, reserved, shards, done, live in await session.execute(statement):
        found[batch_id] = Progress(
            lines_done=int(lines),
            lines_reserved=int(reserved),
            shards=shards,
            shards_done=int(done),
            leases=int(live),
        )
    return found
