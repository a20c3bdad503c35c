"""The bodies of webhooks: OpenAI's webhook endpoints, with what only a broker knows in `x_broker`; and deliveries, ours."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

from broker.api.lists import Listed
from broker.api.shapes import Compatible, Own
from broker.tables import Delivery, Webhook
from jobs.clock import MICROSECONDS

EventType = Literal[
    "batch.completed",
    "batch.failed",
    "batch.expired",
    "batch.cancelled",
    "batch.validating",
    "batch.in_progress",
    "batch.finalizing",
    "batch.cancelling",
    "batch.paused",
    "batch.resumed",
    "batch.changed",
    "batch.approved",
    "batch.rejected",
    "batch.waiting",
    "budget.threshold",
    "budget.breaker",
    "compliance.break_glass",
    "ledger.anomaly",
]
DEFAULT: tuple[EventType, ...] = ("batch.completed", "batch.failed", "batch.expired", "batch.cancelled")


class WebhookCreate(Compatible):
    """A new webhook. Without `event_types` it is told of ends: completed, failed, expired, cancelled."""

    name: str = Field(default="", max_length=200)
    url: str = Field(max_length=2000, description="https, on the public internet; deliveries are POSTed there")
    event_types: list[EventType] = Field(default=list(DEFAULT), min_length=1, max_length=50)


class WebhookSwitch(Own):
    enabled: bool | None = Field(default=None, description="false: send nothing; true: send what happens from now on")


class WebhookUpdate(Compatible):
    """What is named changes; the rest stays."""

    name: str | None = Field(default=None, max_length=200)
    url: str | None = Field(default=None, max_length=2000)
    event_types: list[EventType] | None = Field(default=None, min_length=1, max_length=50)
    x_broker: WebhookSwitch = Field(default_factory=WebhookSwitch)


class WebhookBroker(BaseModel):
    """`x_broker` of a webhook. It is disabled by you, by its answering 410, or after 5 days of nothing but failures."""

    enabled: bool
    disabled_at: int | None
    disabled_reason: str | None
    failing_since: int | None = Field(description="when the first attempt failed since the last that did not")


class WebhookEndpoint(BaseModel):
    """OpenAI's webhook endpoint."""

    id: str
    object: Literal["webhook_endpoint"] = "webhook_endpoint"
    name: str
    url: str
    event_types: list[str]
    created_at: int
    updated_at: int
    signing_secret_hint: str
    x_broker: WebhookBroker


class WebhookWithSecret(WebhookEndpoint):
    signing_secret: str = Field(description="`whsec_…`, shown this once; verify deliveries with it (Standard Webhooks)")


class WebhookList(Listed):
    data: list[WebhookEndpoint]


class WebhookDeleted(BaseModel):
    id: str
    object: Literal["webhook_endpoint.deleted"] = "webhook_endpoint.deleted"
    deleted: Literal[True] = True


class WebhookRotate(Compatible):
    keep_old_secret_active_for_24_hours: bool = Field(
        default=False, description="deliveries are signed with both until then"
    )


class WebhookTest(Compatible):
    event_type: EventType = "batch.completed"


class WebhookTested(BaseModel):
    """What the receiver answered to a sample; `success` says that it answered at all."""

    object: Literal["webhook_endpoint.test"] = "webhook_endpoint.test"
    webhook_endpoint_id: str
    event_type: str
    status_code: int
    success: Literal[True] = True


class EventTypeList(BaseModel):
    object: Literal["list"] = "list"
    data: list[str]


class WebhookDelivery(BaseModel):
    """An event on its way to a webhook. `pending` ones are tried (again) at `next_attempt_at`."""

    object: Literal["webhook_delivery"] = "webhook_delivery"
    event_id: str = Field(description="also the header `webhook-id` of every attempt")
    event_type: str
    batch_id: str
    created_at: int
    status: Literal["pending", "delivered", "gave_up"]
    attempts: int
    last_attempt_at: int | None
    last_status_code: int | None = Field(description="of the receiver's last answer; null when there was none")
    last_error: str | None
    next_attempt_at: int | None
    delivered_at: int | None


class WebhookDeliveryList(Listed):
    data: list[WebhookDelivery]


class PageQuery(Own):
    after: str | None = Field(default=None, max_length=64, description="`last_id` of the page before")
    limit: int = Field(default=20, ge=1, le=100)


def endpoint(webhook: Webhook) -> WebhookEndpoint:
    """A webhook as it is shown."""
    return WebhookEndpoint(
        id=webhook.id,
        name=webhook.name,
        url=webhook.url,
        event_types=list(webhook.events),
        created_at=webhook.created_us // MICROSECONDS,
        updated_at=webhook.updated_us // MICROSECONDS,
        signing_secret_hint=webhook.secret_hint,
        x_broker=WebhookBroker(
            enabled=webhook.disabled_us is None,
            disabled_at=_seconds(webhook.disabled_us),
            disabled_reason=webhook.disabled_reason,
            failing_since=_seconds(webhook.failing_since_us),
        ),
    )


def with_secret(webhook: Webhook, secret: str) -> WebhookWithSecret:
    """A webhook as it is shown once."""
    return WebhookWithSecret(**endpoint(webhook).model_dump(), signing_secret=secret)


def delivery_shape(delivery: Delivery) -> WebhookDelivery:
    """A delivery as it is shown."""
    over: Literal["delivered", "gave_up"] = "delivered" if delivery.delivered_us is not None else "gave_up"
    return WebhookDelivery(
        event_id=delivery.event,
        event_type=delivery.type,
        batch_id=delivery.batch,
        created_at=delivery.created_us // MICROSECONDS,
        status="pending" if delivery.next_us is not None else over,
        attempts=delivery.attempts,
        last_attempt_at=_seconds(delivery.last_us),
        last_status_code=delivery.last_status,
        last_error=delivery.last_error,
        next_attempt_at=_seconds(delivery.next_us),
        delivered_at=_seconds(delivery.delivered_us),
    )


def _seconds(moment_us: int | None) -> int | None:
    return None if moment_us is None else moment_us // MICROSECONDS
