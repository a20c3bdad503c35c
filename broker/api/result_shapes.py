"""Bodies of what can be asked of a batch's results: lines, shards, and doing again what failed."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from broker.api import shapes

LineStatus = Literal["completed", "failed", "invalid", "expired", "cancelled", "pending", "in_flight"]


class ResultQuery(BaseModel):
    """Which lines, and in which order; the batch's own when none is named."""

    model_config = ConfigDict(extra="ignore")

    kind: Literal["output", "errors"] = "output"
    order: Literal["input", "completion"] | None = None


class LineQuery(BaseModel):
    """Lines after line number `after`, of one status or all, under one custom_id or any."""

    model_config = ConfigDict(extra="ignore")

    status: LineStatus | None = None
    custom_id: str | None = Field(
        default=None,
        min_length=1,
        max_length=4096,
        description="exactly this one; the whole input is read for it, so a large batch takes its time",
    )
    after: int = Field(default=0, ge=0, le=2**53)
    limit: int = Field(default=100, ge=1, le=1000)


class LineError(BaseModel):
    code: str
    message: str


class LineTokens(BaseModel):
    """Tokens as metered by the worker: cached ones are part of the input, reasoning ones of the output."""

    input: int
    cached: int
    output: int
    reasoning: int = Field(description="of the output: what the model thought before it answered")


class Line(BaseModel):
    """One request line. `tokens`, `attempts` and `placement` are of its answer."""

    line: int = Field(description="its number in the input file, from 1")
    custom_id: str | None = Field(description="null where the input's cannot be read")
    status: LineStatus
    status_code: int | None = Field(description="the engine's HTTP status, if it answered")
    error: LineError | None
    attempts: int = Field(description="how often it was tried, crashes of the engine included")
    tokens: LineTokens | None
    is_estimated: bool = Field(description="the engine gave no usage; the tokens are our estimate")
    placement: str | None = Field(description="the rental that answered it, or `broker` if it was answered here")


class LineList(BaseModel):
    """Lines by number. `after` of the next page is `last_line`; with a status, a page may be short and have more."""

    object: Literal["list"] = "list"
    data: list[Line]
    last_line: int | None
    has_more: bool


class ShardQuery(BaseModel):
    """Shards after shard number `after`."""

    model_config = ConfigDict(extra="ignore")

    after: int = Field(default=-1, ge=-1, le=2**31 - 1)
    limit: int = Field(default=100, ge=1, le=1000)


class Shard(BaseModel):
    """A run of lines that is leased as one."""

    number: int
    id: str
    first_line: int
    lines: int
    done: int
    reserved: int = Field(description="open lines that the broker will answer itself")
    state: Literal["pending", "leased", "done"]
    placement: str | None = Field(description="the rental that holds it")
    epoch: int = Field(description="which lease it is under, or was last: how often it was given out")
    lease_expires_at: int | None
    in_flight: int = Field(description="lines that the holder's engine works on, as last heard")
    suspects: int = Field(description="open lines that were in flight when an engine or a machine died")


class ShardList(BaseModel):
    object: Literal["list"] = "list"
    data: list[Shard]
    last_shard: int | None
    has_more: bool


class RetryCreate(shapes.Own):
    """What to do again of a batch that has ended, and what to change. Everything else is as it was."""

    which: Literal["all", "failed", "undone"] = Field(
        default="all", description="failed: lines with an error; undone: lines that expired or were cancelled"
    )
    invalid: bool = Field(default=False, description="also the lines that were refused at intake")
    completion_window: str | None = None
    metadata: dict[str, str] | None = None
    x_broker: shapes.BatchWishes | None = Field(
        default=None, description="wishes that are named here replace those of the batch"
    )


class Retried(BaseModel):
    """How many lines of the earlier batch the new one does again, and how many invalid ones it leaves out."""

    failed: int
    undone: int
    invalid: int
    invalid_left_out: int


class RetryBatch(shapes.Batch):
    """The new batch, and what it does again."""

    x_retry: Retried

    @classmethod
    def of(cls, batch: shapes.Batch, retried: Retried) -> RetryBatch:
        fields: dict[str, Any] = {name: getattr(batch, name) for name in shapes.Batch.model_fields}
        return cls(**fields, x_retry=retried)
