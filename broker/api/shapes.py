"""The bodies of requests and answers. OpenAI's own objects keep OpenAI's fields; what is ours sits in `x_broker`.

Money is a decimal string in USD (`"0.001234567"`), exact to the nano-dollar; times are unix seconds, as at OpenAI.
Bodies of OpenAI-compatible routes ignore unknown fields, as OpenAI does; `x_broker` and our own routes refuse them.
"""

from __future__ import annotations

from datetime import date
from decimal import Decimal
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from broker.api.lists import Listed


class Compatible(BaseModel):
    """An OpenAI shape: unknown fields are ignored."""

    model_config = ConfigDict(extra="ignore")


class Own(BaseModel):
    """One of our shapes: an unknown field is an error that names it."""

    model_config = ConfigDict(extra="forbid")


def _as_day(given: object) -> object:
    """JSON has no dates: the text of one is one. Bodies are read strictly, and pydantic takes no text for a date then."""
    try:
        return date.fromisoformat(given) if isinstance(given, str) and len(given) == len("2026-11-28") else given
    except ValueError:
        return given


SaidDay = Annotated[date, BeforeValidator(_as_day)]


class Confidential(Own):
    """A body that holds secrets: what is wrong with it is told without what was sent."""


# --- batches ---------------------------------------------------------------------------------------------------------


Confidentiality = Literal["none", "at_rest", "dedicated", "cpu_tee", "gpu_tee"]


# As long as OpenAI's metadata: both are read again with every batch of every list.
TagKey = Annotated[str, Field(max_length=64)]
TagValue = Annotated[str, Field(max_length=512)]


class BatchWishes(Own):
    """`x_broker` of a new batch: what OpenAI's request cannot say."""

    project: str | None = Field(
        default=None, max_length=64, description="whose batch it is; only keys that see all projects may name another"
    )
    deadline: int | None = Field(
        default=None,
        description="unix seconds; the batch expires at the earlier of this and created_at + completion_window",
    )
    max_usd: str | None = Field(
        default=None, pattern=r"^[0-9]{1,9}(\.[0-9]{1,9})?$", description="most that the batch may cost, decimal USD"
    )
    max_rtt_ms: int | None = Field(
        default=None,
        ge=0,
        le=60_000,
        description="most that a message from a machine to the store of its data and back may take; unknown is too much",
    )
    max_p95_ms: int | None = Field(
        default=None,
        ge=1,
        le=3_600_000,
        description="most that 95 of 100 requests may take in the engine; fewer are computed at once then, which costs more",
    )
    residency: list[str] | None = Field(
        default=None,
        min_length=1,
        max_length=300,
        description="ISO 3166 alpha-2 codes, groups such as `eu`, and names of policies in force; they only narrow",
    )
    data_class: Literal["public", "internal", "confidential", "personal", "health", "secret"] | None = Field(
        default=None, description="what the data is; it may only be more than the project's own class"
    )
    confidentiality: Confidentiality | None = Field(
        default=None, description="the least that a place must offer, in this order: none, at_rest, dedicated, …"
    )
    models: list[str] | None = Field(
        default=None,
        min_length=1,
        max_length=16,
        description="other models that may answer; the cheapest that is feasible among these and the lines' own does",
    )
    precision: list[str] | None = Field(
        default=None, min_length=1, max_length=16, description="precisions that are accepted, e.g. bf16, fp8"
    )
    engine_profile: str | None = Field(
        default=None, max_length=200, description="the one configured profile that must serve it; see GET /v1/models"
    )
    priority: int = Field(default=0, ge=-100, le=100)
    tags: dict[TagKey, TagValue] = Field(default_factory=dict, max_length=16)
    order: Literal["input", "completion"] = "input"
    on_infeasible: Literal["fail", "queue"] = "fail"
    part_lines: int | None = Field(default=None, ge=1, le=1000, description="cut a part at least every so many lines")
    skip_invalid: bool = Field(
        default=False, description="run the good lines of a file with bad ones; the bad ones are in the error file"
    )
    reuse: bool = Field(
        default=False,
        description="answer exact repeats (same model revision, same body, temperature 0) of this project without "
        "running them again",
    )


class ExpiresAfter(Compatible):
    """When a file expires: so many seconds, an hour to 30 days, after it is made."""

    anchor: Literal["created_at"]
    seconds: int = Field(ge=3_600, le=2_592_000)


class BatchCreate(Compatible):
    input_file_id: str
    endpoint: str
    completion_window: str = "24h"
    metadata: dict[str, str] | None = None
    output_expires_after: ExpiresAfter | None = Field(default=None, description="of the output and the error file")
    x_broker: BatchWishes | None = None


class RequestCounts(BaseModel):
    """OpenAI's three counts; `failed` includes expired and cancelled lines (contract C12)."""

    total: int
    completed: int
    failed: int


class LineCounts(BaseModel):
    """Every line once: the four outcomes sum to total when the batch has ended."""

    total: int
    completed: int
    failed: int
    expired: int
    cancelled: int


class BatchError(BaseModel):
    code: str
    message: str
    line: int | None = None
    param: str | None = None


class BatchErrors(BaseModel):
    object: Literal["list"] = "list"
    data: list[BatchError]


class Relaxation(BaseModel):
    """A verified smallest change that would make the batch feasible."""

    field: str
    current: str
    needed: str
    offer_key: str
    usd: str
    message: str


class Placement(BaseModel):
    """Where a batch runs or ran: one rental, as the market and our books know it."""

    rental: str
    offer_key: str
    market: str
    country: str | None
    location_tier: str
    state: str = Field(description="intended, creating, running, releasing, ended, lost, failed")
    worker: str | None = Field(description="awaited, starting, ready, draining, gone, failed")
    usd_per_hour: str
    lines: int = Field(description="lines of this batch committed by this rental")
    usd: str = Field(description="this batch's share of the rental's accrued cost")
    started_at: int | None
    ended_at: int | None
    end_reason: str | None = Field(description="released, preempted, exited, failed")
    exit_status: int | None
    facts: dict[str, str] = Field(
        default_factory=dict, description="what the market says of the machine (pid, address)"
    )


class WaitingNow(BaseModel):
    """Why nothing moves at this moment, and until when. A batch that neither runs nor has ended always has one."""

    on: str = Field(
        description="validation, planning, capacity, budget, residency, price_ceiling, quota, approval, deadline, model, "
        "latency, paused, start, finalizing"
    )
    reasons: list[str]
    since: int
    eta: int = Field(description="unix seconds; when the batch is expected to have ended")
    eta_basis: str = Field(
        description="plan: by the newest plan; relaxed: if the cause went away now; deadline: nothing better is known"
    )


class Reused(BaseModel):
    """Lines that were answered without an engine, and what that saved at the quoted price."""

    lines: int
    input_tokens: int
    output_tokens: int
    saved_usd: str


class BatchBroker(BaseModel):
    """`x_broker` of a batch in answers."""

    project: str
    phase: str = Field(description="queued, provisioning, loading_model, running, finalizing, ended")
    waiting_on: str | None = Field(description="the same as waiting.on; null when it moves")
    waiting_reasons: list[str] = Field(default_factory=list)
    relaxations: list[Relaxation] = Field(default_factory=list)
    waiting: WaitingNow | None = None
    paused: bool = False
    approval: str | None = Field(default=None, description="id of the approval that it waits or waited for")
    counts: LineCounts
    invalid: int = Field(default=0, description="lines that were refused at intake (skip_invalid); part of failed")
    errors_total: int = Field(default=0, description="how many findings there were; `errors` has the first 1,000")
    reused: Reused | None = None
    tokens: dict[str, int] = Field(description="input, output: metered so far")
    cost_usd: str = Field(description="accrued so far")
    quote_usd: str | None
    quote_end: int | None
    eta: int | None = Field(description="unix seconds; expected end of what remains")
    usd_per_million_tokens: str | None
    preemptions: int = Field(description="rentals of this batch that ended without our asking")
    max_usd: str | None
    deadline: int | None
    max_rtt_ms: int | None = None
    max_p95_ms: int | None = None
    p95_ms: int | None = Field(
        default=None,
        description="of a batch with max_p95_ms: what 95 of 100 of its requests took at most; null in lists",
    )
    residency: list[str] | None
    priority: int
    tags: dict[str, str]
    order: str
    served_model: str | None = Field(default=None, description="the configured profile that answers")
    models: list[str] | None = None
    precision: list[str] | None = None
    engine_profile: str | None = None
    confidentiality: Confidentiality | None = None
    on_infeasible: str = "fail"
    skip_invalid: bool = False
    reuse: bool = False
    retry_of: str | None = None
    placements: list[Placement] | None = Field(default=None, description="where it runs and ran; null in lists")


class Batch(BaseModel):
    """OpenAI's batch object, field by field, with ours in `x_broker`."""

    id: str
    object: Literal["batch"] = "batch"
    endpoint: str
    model: str | None = None
    errors: BatchErrors | None = None
    input_file_id: str
    completion_window: str
    status: str
    output_file_id: str | None = None
    error_file_id: str | None = None
    created_at: int
    in_progress_at: int | None = None
    expires_at: int | None = None
    finalizing_at: int | None = None
    completed_at: int | None = None
    failed_at: int | None = None
    expired_at: int | None = None
    cancelling_at: int | None = None
    cancelled_at: int | None = None
    request_counts: RequestCounts
    metadata: dict[str, str] | None = None
    usage: dict[str, Any] | None = None
    x_broker: BatchBroker


class BatchList(Listed):
    data: list[Batch]


class Placements(BaseModel):
    object: Literal["list"] = "list"
    data: list[Placement]


# --- files and models ------------------------------------------------------------------------------------------------


class File(BaseModel):
    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    expires_at: int | None = None
    filename: str
    purpose: str
    status: Literal["uploaded", "processed", "error"] = "processed"


class FileList(Listed):
    data: list[File]


class Deleted(BaseModel):
    id: str
    object: Literal["file"] = "file"
    deleted: Literal[True] = True


class Model(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str
    x_broker: dict[str, Any] = Field(
        description="serves (the public name), engine, precision, context, endpoints, launches, offers (feasible now), "
        "tokens_per_s; profiles: the same of every profile that serves it, by id"
    )


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[Model]


# --- markets, ledger, admin ------------------------------------------------------------------------------------------


class Offer(BaseModel):
    """A row of the price book; the field names are those of `broker offers --json`."""

    key: str
    market: str
    region: str | None
    zone: str | None
    country: str | None
    subdivision: str | None
    location_evidence: list[str]
    location_tier: str
    confidentiality: str
    operator: str | None
    operator_jurisdictions: list[str] | None
    gpu: str
    gpu_memory_gib: str
    gpu_count: int
    pricing: str
    usd_per_hour: str | None
    usd_per_gpu_hour: str | None
    observed_at: int
    source: str
    capacity: int | None
    interruption_per_hour: str | None
    notice_s: int
    granularity_s: int
    minimum_s: int
    egress_usd_per_gb: str
    launch: str
    quarantined: bool
    reason: str | None


class OfferList(BaseModel):
    object: Literal["list"] = "list"
    data: list[Offer]
    usd_per_million: dict[str, str] | None = Field(
        default=None,
        description="of a model that was asked for, or where all are of tokens: USD per million output tokens, by offer key",
    )


def plain(number: Decimal) -> str:
    """Exact, without an exponent or trailing zeros."""
    text = format(number, "f")
    return text.rstrip("0").rstrip(".") if "." in text else text


class Posting(BaseModel):
    account: str
    unit: str
    amount: str


class Entry(BaseModel):
    seq: int
    id: str
    key: str
    kind: str
    occurred_at: str = Field(description="RFC 3339, UTC, microseconds")
    project: str | None
    batch: str | None
    rental: str | None
    offer_key: str | None
    corrects: str | None
    hold: str | None
    postings: list[Posting]


class Ledger(BaseModel):
    """Entries with what they sum to. `balanced`: the books were checked just now and nothing was found."""

    object: Literal["ledger"] = "ledger"
    entries: list[Entry]
    balances: dict[str, str] = Field(description="account → USD, of the entries that match")
    by_hand: dict[str, dict[str, str]] = Field(
        description="account → unit → what of an asset or a debt people book: without what the broker books back itself"
    )
    accrued_usd: str
    held_usd: str
    balanced: bool
    findings: list[str]
    has_more: bool


class KeyCreate(Own):
    principal: str = Field(min_length=1, max_length=100)
    project: str | None = Field(
        default=None,
        min_length=1,
        max_length=64,
        pattern=r"^[a-z0-9][a-z0-9-]*$",
        description="default: the caller's own, for a key of all projects `default`",
    )
    all_projects: bool = Field(
        default=False,
        description="a key of the house, for its compliance, finance and operators; made by such a key only",
    )
    roles: list[Literal["submitter", "viewer", "compliance", "finance", "operator", "admin"]] = Field(min_length=1)
    expires_in_s: int | None = Field(default=None, gt=0)


class KeyCreated(BaseModel):
    id: str
    key: str = Field(description="shown once; only its hash is kept")
    principal: str
    project: str | None
    roles: list[str]
    expires_at: int | None


class KeyRevoked(BaseModel):
    id: str
    revoked: Literal[True] = True


class ApiError(BaseModel):
    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorEnvelope(BaseModel):
    error: ApiError
