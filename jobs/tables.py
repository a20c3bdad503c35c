"""The jobs room's tables. Times are integer microseconds UTC; ranges are JSON lists of half-open [start, stop) pairs.

Input lines are never rows: a shard names a byte range of an immutable object, and a part row says which lines it
answers. What a person typed (file names, metadata, tags) lives here and nowhere else.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import JSON, BigInteger, Column, Index, LargeBinary, UniqueConstraint
from sqlmodel import Field, SQLModel


def big(*, nullable: bool = False, index: bool = False, default: int | None = None) -> Any:
    """A 64-bit integer column: microseconds, bytes or tokens."""
    return Field(default=default, sa_column=Column(BigInteger, nullable=nullable, index=index))


def json(*, nullable: bool = False) -> Any:
    """A JSON column. Values are replaced, never changed in place: SQLAlchemy would not see the change."""
    return Field(default=None, sa_column=Column(JSON, nullable=nullable))


class File(SQLModel, table=True):
    """An uploaded or composed file: `bytes` long, stored immutably under `object_key`.

    `purpose` is OpenAI's: `batch` for inputs, `batch_output` for output and error files.
    """

    __tablename__ = "jobs_file"
    id: str = Field(primary_key=True)
    project: str = Field(index=True)
    purpose: str
    filename: str
    bytes: int = big()
    sha256: str
    object_key: str = Field(unique=True)
    created_us: int = big()
    expires_us: int | None = big(nullable=True)
    deleted_us: int | None = big(nullable=True)


class Batch(SQLModel, table=True):
    """A batch. `status` is OpenAI's; `ending` says what it is about to become once it takes no more answers.

    `ending` (completed, expired, cancelled) is set when the batch is closed: from then on its parts are final and the
    finaliser composes them; a batch in a terminal status never changes again. `version` grows with every transition.
    `input_tokens` and `output_tokens` are estimates for the whole input, `used_*` is what was metered so far.
    `wishes` is the request's `x_broker` as it came, with the `max_usd` that was set last; `deadline_us`, `priority` and
    `line_order` (input, completion) are read from it once. `errors` are the first findings of
    validation, `errors_total` how many there were.

    `model` is the profile that serves the batch, `asked_model` what its lines name. `paused_us` is set while no new line
    may start. `invalid` lines were answered at intake with what is wrong with them (part of `failed`); `reused` lines
    were answered without an engine, with the tokens and the money that this saved. `retry_of` is the batch whose open
    lines these are. `events` is how many outbox events there are of it. `revision` says which model exactly answers, if
    that is pinned and the batch asked for reuse; then its answers are remembered once it has ended (`remembered_us`).
    """

    __tablename__ = "jobs_batch"
    __table_args__ = (Index("jobs_batch_by_status", "status"), Index("jobs_batch_by_project", "project", "id"))
    id: str = Field(primary_key=True)
    project: str
    principal: str
    endpoint: str
    model: str | None = None
    asked_model: str | None = None
    input_file_id: str = Field(foreign_key="jobs_file.id", index=True)
    input_key: str
    completion_window: str
    status: str
    ending: str | None = None
    version: int = 0
    created_us: int = big()
    expires_us: int = big()
    in_progress_us: int | None = big(nullable=True)
    finalizing_us: int | None = big(nullable=True)
    completed_us: int | None = big(nullable=True)
    failed_us: int | None = big(nullable=True)
    expired_us: int | None = big(nullable=True)
    cancelling_us: int | None = big(nullable=True)
    cancelled_us: int | None = big(nullable=True)
    paused_us: int | None = big(nullable=True)
    deadline_us: int | None = big(nullable=True)
    total: int = 0
    completed: int = 0
    failed: int = 0
    expired: int = 0
    cancelled: int = 0
    invalid: int = 0
    reused: int = 0
    reused_input_tokens: int = big(default=0)
    reused_output_tokens: int = big(default=0)
    saved_nano: int = big(default=0)
    input_tokens: int = big(default=0)
    output_tokens: int = big(default=0)
    used_input_tokens: int = big(default=0)
    used_output_tokens: int = big(default=0)
    used_cached_tokens: int = big(default=0)
    used_reasoning_tokens: int = big(default=0)
    output_expires_s: int | None = big(nullable=True)
    output_file_id: str | None = None
    error_file_id: str | None = None
    errors: list[dict[str, Any]] | None = json(nullable=True)
    errors_total: int = 0
    # SQLAlchemy keeps `metadata` for itself on the class; in the database the column has OpenAI's name
    metadata_: dict[str, str] | None = Field(default=None, sa_column=Column("metadata", JSON, nullable=True))
    wishes: dict[str, Any] | None = json(nullable=True)
    policy_hash: str
    priority: int = 0
    line_order: str = "input"
    retry_of: str | None = Field(default=None, index=True)
    events: int = 0
    revision: str | None = Field(default=None, index=True)
    remembered_us: int | None = big(nullable=True)


class BatchRequest(SQLModel, table=True):
    """One accepted request to create a batch, so that asking again does not create another.

    `key` is the client's idempotency key, or None; a repeat by an SDK is known by `principal` and `body_sha256`.
    """

    __tablename__ = "jobs_batch_request"
    __table_args__ = (
        UniqueConstraint("project", "key"),
        Index("jobs_batch_request_by_body", "project", "principal", "body_sha256"),
    )
    batch_id: str = Field(primary_key=True, foreign_key="jobs_batch.id")
    project: str
    principal: str
    key: str | None = None
    body_sha256: str
    created_us: int = big()


class Shard(SQLModel, table=True):
    """A run of request lines that is leased as one: `lines` from `first_idx`, bytes [start, stop) of the input object.

    `state` is pending, leased or done. `epoch` counts the leases so far; the newest is described by `nonce`,
    `placement_id` and `lease_expires_us` (the database's clock). `done` are the committed lines. `in_flight` is what
    the holder last said the engine works on; `suspects` maps a line (as text, JSON) to the crashes it was in.

    `reserved` are open lines that no worker gets, because the broker will answer them itself: each is a duplicate of the
    earlier line that `follows` names (line → line, as text, JSON). `prefix` says which shared prompt prefix most of the
    lines begin with: shards of one prefix go to the worker that is warm.
    """

    __tablename__ = "jobs_shard"
    __table_args__ = (UniqueConstraint("batch_id", "number"), Index("jobs_shard_by_state", "batch_id", "state"))
    id: str = Field(primary_key=True)
    batch_id: str = Field(foreign_key="jobs_batch.id")
    number: int
    first_idx: int
    lines: int
    start: int = big()
    stop: int = big()
    sha256: str
    input_tokens: int = big()
    output_tokens: int = big()
    state: str = "pending"
    epoch: int = 0
    nonce: str | None = None
    placement_id: str | None = Field(default=None, index=True)
    lease_expires_us: int | None = big(nullable=True)
    done: list[list[int]] = json()
    done_lines: int = 0
    in_flight: list[int] = json()
    suspects: dict[str, int] = json()
    prefix: str | None = None
    reserved: list[list[int]] = json()
    reserved_lines: int = 0
    follows: dict[str, int] = json()


class LeaseRow(SQLModel, table=True):
    """Every lease that was ever granted, so that a late commit can still prove what it was made under.

    `end_reason` is None while it runs, then done (no line is left for a worker), expired (another took over), released
    (given back), abandoned (the machine is gone), revoked (the placement is trusted no more), closed (the batch ended) or
    dropped (its batch was paused, and what was in flight is committed). `told_us` is when its holder was told to start
    nothing more of it: it never starts again, also when the batch goes on.
    """

    __tablename__ = "jobs_lease"
    shard_id: str = Field(primary_key=True, foreign_key="jobs_shard.id")
    epoch: int = Field(primary_key=True)
    batch_id: str = Field(foreign_key="jobs_batch.id", index=True)
    placement_id: str = Field(index=True)
    nonce: str
    granted_us: int = big()
    told_us: int | None = big(nullable=True)
    ended_us: int | None = big(nullable=True)
    end_reason: str | None = None


class Part(SQLModel, table=True):
    """A part that a worker asked to commit, and the final answer. An uploaded object without a row does not exist.

    `outcome` is committed, committed_superseded, or one of `commits.PAID_FOR` (refused, kept because the work was paid for:
    others had answered, the batch had ended, the placement was revoked). Only a row with `counted` true answers lines; the
    finaliser clears it (`withdrawn_us`) when the object is missing or damaged.
    `usage` is the JSON array of `LineUsage`; the sums beside it are of the same lines.
    """

    __tablename__ = "jobs_part"
    shard_id: str = Field(primary_key=True, foreign_key="jobs_shard.id")
    epoch: int = Field(primary_key=True)
    seq: int = Field(primary_key=True)
    batch_id: str = Field(foreign_key="jobs_batch.id", index=True)
    placement_id: str = Field(index=True)
    key: str
    size: int = big()
    sha256: str
    lines: list[list[int]] = json()
    usage: bytes = Field(sa_column=Column(LargeBinary, nullable=False))
    counters: dict[str, int] = json()
    outcome: str
    counted: bool
    committed_us: int = big()
    withdrawn_us: int | None = big(nullable=True)
    completed: int = 0
    failed: int = 0
    prompt_tokens: int = big(default=0)
    completion_tokens: int = big(default=0)
    cached_tokens: int = big(default=0)
    reasoning_tokens: int = big(default=0)


class RevokedPlacement(SQLModel, table=True):
    """A placement that is trusted no more: none of its later commits counts."""

    __tablename__ = "jobs_revoked_placement"
    placement_id: str = Field(primary_key=True)
    revoked_us: int = big()


class OutboxEvent(SQLModel, table=True):
    """A state change, written with the change itself; delivered at least once, so readers drop ids they have seen.

    It is the `number`th event of its batch: numbers are given under the batch's row lock, so they have no gaps, and
    whoever sees one sees all before it.
    """

    __tablename__ = "jobs_outbox"
    __table_args__ = (UniqueConstraint("batch_id", "number", name="jobs_outbox_number"),)
    id: str = Field(primary_key=True)
    number: int
    kind: str
    batch_id: str = Field(index=True)
    project: str
    payload: dict[str, Any] = json()
    created_us: int = big()
    delivered_us: int | None = big(nullable=True, index=True)


class UploadRow(SQLModel, table=True):
    """A file that is uploaded in parts. `status` is OpenAI's: pending, completed, cancelled, expired.

    `bytes` is what was announced; the file is made only when the parts sum to just that. `collected_us` is when what it
    left in the object store was removed, long after it was over.
    """

    __tablename__ = "jobs_upload"
    id: str = Field(primary_key=True)
    project: str = Field(index=True)
    principal: str
    purpose: str
    filename: str
    mime_type: str
    bytes: int = big()
    status: str
    created_us: int = big()
    expires_us: int = big(index=True)
    file_expires_s: int | None = big(nullable=True)
    file_id: str | None = None
    collected_us: int | None = big(nullable=True, index=True)


class UploadPart(SQLModel, table=True):
    """A part of an upload, stored under `object_key` until the upload is completed, cancelled or expired."""

    __tablename__ = "jobs_upload_part"
    id: str = Field(primary_key=True)
    upload_id: str = Field(foreign_key="jobs_upload.id", index=True)
    object_key: str = Field(unique=True)
    bytes: int = big()
    sha256: str
    created_us: int = big()


class AnswerRow(SQLModel, table=True):
    """Where the answer to a request lies that this project had answered before: line `idx` of a committed part.

    `request_sha256` is of model revision, endpoint and body; only requests with temperature 0 of batches that opted in
    are remembered.
    """

    __tablename__ = "jobs_answer"
    project: str = Field(primary_key=True)
    request_sha256: str = Field(primary_key=True)
    batch_id: str = Field(foreign_key="jobs_batch.id", index=True)
    part_key: str
    part_sha256: str
    idx: int
    prompt_tokens: int = big()
    completion_tokens: int = big()
    created_us: int = big()


class LineTag(SQLModel, table=True):
    """Which lines of a batch carry a tag that a person typed (agent, task): erasable, and never sealed (contract C13)."""

    __tablename__ = "jobs_line_tag"
    batch_id: str = Field(primary_key=True, foreign_key="jobs_batch.id")
    key: str = Field(primary_key=True)
    value: str = Field(primary_key=True)
    lines: list[list[int]] = json()
