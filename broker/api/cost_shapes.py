"""Bodies of costs by tag."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

LATEST = 253_402_300_799  # the last second of the year 9999


class TagQuery(BaseModel):
    """Which tag; other parameters are refused."""

    model_config = ConfigDict(extra="forbid")

    by: str = Field(pattern=r"^[^\x00]{1,64}$", description="name of a tag, of lines or of the batch")


class ProjectTagQuery(TagQuery):
    """Which tag, of the batches that were created in which time."""

    since: int = Field(default=0, ge=0, le=LATEST, description="unix seconds; batches created at or after it")
    until: int | None = Field(default=None, ge=0, le=LATEST, description="unix seconds; batches created before it")


class CostRow(BaseModel):
    """The lines with one value of the tag; `-` are those without."""

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


class TagsErased(BaseModel):
    id: str
    object: Literal["batch.tags"] = "batch.tags"
    deleted: Literal[True] = True
