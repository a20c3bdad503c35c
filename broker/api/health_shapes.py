"""What the broker says of itself: whether it serves, and what `broker doctor` finds."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field, computed_field


class Check(BaseModel):
    """One finding. What is in order and yet has something to mend is a warning."""

    name: str
    ok: bool
    found: str
    mend: str | None

    @computed_field  # type: ignore[prop-decorator]
    @property
    def state(self) -> Literal["ok", "warn", "fail"]:
        if not self.ok:
            return "fail"
        return "warn" if self.mend else "ok"


class Doctor(BaseModel):
    ok: bool
    checks: list[Check]


class Health(BaseModel):
    status: Literal["ok", "unready"]
    problems: list[str]
    leads: bool = Field(
        description="whether this broker runs the deciding loops; of those that share a database one does"
    )
