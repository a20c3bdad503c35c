"""Bodies of a project's settings."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

from broker.api.shapes import Own

MAX_BYTES = 2**40
MAX_LIFETIME_S = 10 * 366 * 86_400


class ProjectLimitsPatch(Own):
    """New limits; what is left away stays, null goes back to the broker's setting."""

    max_lines: int | None = Field(default=None, ge=1, le=10_000_000)
    max_file_bytes: int | None = Field(default=None, ge=1, le=MAX_BYTES)
    max_upload_bytes: int | None = Field(default=None, ge=1, le=MAX_BYTES)
    max_line_bytes: int | None = Field(default=None, ge=1, le=64 * 1024 * 1024)
    max_output_tokens: int | None = Field(default=None, ge=1, le=10_000_000)
    max_n: int | None = Field(default=None, ge=1, le=16_384)
    file_lifetime_s: int | None = Field(default=None, ge=0, le=MAX_LIFETIME_S, description="inputs; 0: until deleted")
    results_lifetime_s: int | None = Field(
        default=None, ge=0, le=MAX_LIFETIME_S, description="results; 0: until deleted"
    )


class ProjectPatch(Own):
    limits: ProjectLimitsPatch = Field(default_factory=ProjectLimitsPatch)
    approve_above_usd: str | None = Field(
        default=None,
        pattern=r"^[0-9]{1,9}(\.[0-9]{1,9})?$",
        description="a batch that may cost more waits for a second person; null goes back to the broker's setting",
    )


class Project(BaseModel):
    """A project's settings: what holds, and which of it is its own."""

    object: Literal["project"] = "project"
    id: str
    created_at: int
    limits: dict[str, int] = Field(description="what holds now, by name")
    approve_above_usd: str | None = Field(description="what holds now; null: no batch needs approval")
    own: list[str] = Field(description="the names of the settings that are the project's own")


class ProjectErased(BaseModel):
    """A project's data is gone. `objects` is how many lay in the object store."""

    id: str
    object: Literal["project.data"] = "project.data"
    deleted: Literal[True] = True
    objects: int
