"""Bodies of costs by machine, by model, and by tag."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

LATEST = 253_402_300_799  # the last second of the year 9999


class CostQuery(BaseModel):
    """By what; other parameters are refused."""

    model_config = ConfigDict(extra="forbid")

    by: str = Field(
        pattern=r"^(tag:)?[^\x00]{1,64}$",
        description="placement, model, or the name of a tag, of lines or of the batch; tag:NAME is always the tag",
    )


class ProjectCostQuery(CostQuery):
    """By what, of the batches that were created in which time."""

    since: int = Field(default=0, ge=0, le=LATEST, description="unix seconds; batches created at or after it")
    until: int | None = Field(default=None, ge=0, le=LATEST, description="unix seconds; batches created before it")


class CostRow(BaseModel):
    """The lines of one machine (`broker`: they needed none), model or value of the tag; `-` are those without."""

    value: str
    lines: int
    completed: int
    failed: int
    input_tokens: int
    output_tokens: int
    usd: str


class Costs(BaseModel):
    """Rows by value; `usd` is what they sum to, exactly, and equals the cost of the batch or batches."""

    object: Literal["list"] = "list"
    by: str
    batch: str | None
    batches: int
    data: list[CostRow]
    usd: str


class TokenClasses(BaseModel):
    """Disjoint: cached input is not fresh input. Reasoning is part of output where the engine does not tell it apart."""

    fresh_input: int
    cached_input: int
    output: int
    reasoning: int


class UnitCosts(BaseModel):
    """What units of a batch did cost so far, waste included; null where there is nothing to divide by.

    `useful` are responses that were finished and delivered. `billed_seconds` is the batch's share of its machines' billed time,
    `busy_seconds` what engines worked on its answers. `avoided_usd` is of the whole project, by alternative.
    """

    batch: str
    usd: str
    tokens: TokenClasses
    requests: int
    useful: int
    usd_per_million_output_tokens: str | None
    usd_per_million_tokens: str | None
    usd_per_request: str | None
    usd_per_useful_response: str | None
    usd_per_busy_hour: str | None
    billed_seconds: float
    busy_seconds: float
    retried_seconds: float
    saved_usd: str
    avoided_usd: dict[str, str]


class TagsErased(BaseModel):
    id: str
    object: Literal["batch.tags"] = "batch.tags"
    deleted: Literal[True] = True
