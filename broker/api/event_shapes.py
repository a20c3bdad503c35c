"""Events as they are told: OpenAI's event object, with what only a broker knows in `x_broker`."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field

from broker.api.lists import Listed
from broker.api.shapes import Own
from jobs.clock import MICROSECONDS
from jobs.tables import OutboxEvent


class EventSubject(BaseModel):
    """What an event is about."""

    id: str = Field(description="the batch")


class BatchEvent(BaseModel):
    """Something that happened to a batch; the same object in streams, lists and webhooks."""

    id: str
    object: Literal["event"] = "event"
    type: str = Field(description="`batch.<status>` for a change of status, `part.committed`, …")
    created_at: int
    data: EventSubject
    x_broker: dict[str, Any] = Field(
        description="the facts: `number` (the batch's events are numbered from 1), how far the batch was then (`total`, "
        "`completed`, `failed` lines), and those of the change, e.g. `from` and `to` for a status"
    )


class BatchEventList(Listed):
    """A page of a batch's events, oldest first."""

    data: list[BatchEvent]


class EventQuery(Own):
    """Where to begin, and in which form."""

    after: str | None = Field(
        default=None, max_length=64, description="id of the last event that was seen; the header Last-Event-ID wins"
    )
    limit: int = Field(default=20, ge=1, le=100, description="of a page; a stream has no limit")
    stream: bool | None = Field(
        default=None,
        description="true: a stream; false: a page; else a page when Accept names application/json and no event stream",
    )


def batch_event(event: OutboxEvent) -> BatchEvent:
    """An outbox row as it is told."""
    return BatchEvent(
        id=event.id,
        type=event.kind,
        created_at=event.created_us // MICROSECONDS,
        data=EventSubject(id=event.batch_id),
        x_broker={"number": event.number, **event.payload},
    )
