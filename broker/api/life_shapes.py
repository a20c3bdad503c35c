"""Bodies of what may be done to a batch while it lives: changing it, and deciding about one that waits for approval."""

from __future__ import annotations

from pydantic import Field

from broker.api.shapes import Own


class BatchChanges(Own):
    """New values; what is left away stays as it is."""

    max_usd: str | None = Field(
        default=None,
        pattern=r"^[0-9]{1,9}(\.[0-9]{1,9})?$",
        description="most that the whole batch may cost, decimal USD; null: no limit. A batch that was stopped at its old "
        "limit goes on; one that has spent the new one already is stopped",
    )
    priority: int = Field(default=0, ge=-100, le=100)
    deadline: int | None = Field(
        default=None,
        description="unix seconds, at most 30 days after created_at; the batch expires just then, also when its completion "
        "window ends sooner. null: when the window ends",
    )


class BatchPatch(Own):
    x_broker: BatchChanges = Field(default_factory=BatchChanges)


class Rejection(Own):
    reason: str = Field(default="", max_length=500, description="what the submitter is told")
