"""Webhooks: the routes of OpenAI's own clients (`client.webhooks.create(…)`), and what was sent, which they do not have."""

from __future__ import annotations

from typing import get_args

import structlog
from sqlalchemy.ext.asyncio import AsyncSession

from broker import deliveries, webhooks
from broker.api import webhook_shapes as shapes
from broker.api.event_shapes import BatchEvent, EventSubject
from broker.api.problems import bad_request, conflict, not_found
from broker.api.registry import Call, Route, route
from broker.egress import BadUrl, checked_url
from broker.envelope import Unopenable
from broker.keys import Role
from broker.tables import Delivery, Webhook
from broker.webhook_sender import Message, WebhookSender
from jobs import ids
from jobs.clock import MICROSECONDS, db_now

log = structlog.get_logger()

READERS: tuple[Role, ...] = ("submitter", "viewer", "operator")


async def create(call: Call, body: shapes.WebhookCreate) -> shapes.WebhookWithSecret:
    """Tell a URL of what happens to the project's batches; the secret is shown this once."""
    url, most = _url(call, body.url), call.services.settings.webhooks.per_project
    key = await webhooks.sealing(call.services.vault)
    async with call.services.database.transaction() as session:
        if await webhooks.count(session, call.project) >= most:
            raise conflict("too_many_webhooks", f"This project has {most} webhooks already; delete one first.")
        webhook, secret = await webhooks.create(
            session,
            key=key,
            project=call.project,
            name=body.name,
            url=url,
            events=body.event_types,
            now_us=await db_now(session),
        )
        shown = shapes.with_secret(webhook, secret)
    log.info("webhook.created", webhook=shown.id, project=call.project, events=shown.event_types, by=call.caller.key_id)
    return shown


def _url(call: Call, text: str) -> str:
    settings = call.services.settings.webhooks
    try:
        return checked_url(text, allow_http=settings.allow_http, allow_private=settings.allow_private)
    except BadUrl as refused:
        raise bad_request("invalid_url", f"url: {refused}", "url") from refused


async def list_webhooks(call: Call, query: shapes.PageQuery) -> shapes.WebhookList:
    """List webhooks, newest first."""
    async with call.services.database.transaction() as session:
        page = await webhooks.page(session, call.project, after=query.after, limit=query.limit)
        shown = [shapes.endpoint(webhook) for webhook in page]
    return shapes.WebhookList.of(shown, has_more=page.has_more)


async def get_webhook(call: Call) -> shapes.WebhookEndpoint:
    """A webhook: where it goes, what it is told, and whether it works."""
    async with call.services.database.transaction() as session:
        return shapes.endpoint(await _mine(session, call))


async def update(call: Call, body: shapes.WebhookUpdate) -> shapes.WebhookEndpoint:
    """Change a webhook's name, URL or events, or switch it off or on."""
    url = None if body.url is None else _url(call, body.url)
    async with call.services.database.transaction() as session:
        webhook, now_us = await _mine(session, call), await db_now(session)
        before = (webhook.name, webhook.url, webhook.events)
        webhook.name = webhook.name if body.name is None else body.name
        webhook.url = url or webhook.url
        webhook.events = list(dict.fromkeys(body.event_types or webhook.events))
        if (webhook.name, webhook.url, webhook.events) != before:
            webhook.updated_us = now_us
        if body.x_broker.enabled is True:
            webhooks.enable(webhook)
        elif body.x_broker.enabled is False and webhook.disabled_us is None:
            await webhooks.disable(session, webhook, f"by {call.caller.name}", now_us)
        return shapes.endpoint(webhook)


async def remove(call: Call) -> shapes.WebhookDeleted:
    """Delete a webhook and what is known of its deliveries; what is on its way is not sent any more."""
    async with call.services.database.transaction() as session:
        webhook = await _mine(session, call)
        await webhooks.remove(session, webhook)
    log.info("webhook.deleted", webhook=webhook.id, project=call.project, by=call.caller.key_id)
    return shapes.WebhookDeleted(id=webhook.id)


async def rotate_secret(call: Call, body: shapes.WebhookRotate) -> shapes.WebhookWithSecret:
    """Make another secret, shown this once; the earlier one is worth nothing from now on, or in 24 hours."""
    key = await webhooks.sealing(call.services.vault)
    async with call.services.database.transaction() as session:
        webhook = await _mine(session, call)
        secret = webhooks.rotate(
            webhook,
            key=key,
            keep_earlier=body.keep_old_secret_active_for_24_hours,
            now_us=await db_now(session),
        )
        shown = shapes.with_secret(webhook, secret)
    log.info("webhook.rotated", webhook=shown.id, project=call.project, by=call.caller.key_id)
    return shown


async def test(call: Call, body: shapes.WebhookTest) -> shapes.WebhookTested:
    """Send a sample event now, once, and say what the receiver answered."""
    key = await webhooks.sealing(call.services.vault)
    async with call.services.database.transaction() as session:
        webhook, now_us = await _mine(session, call), await db_now(session)
        try:
            secrets = webhooks.signing_secrets(webhook, key=key, now_us=now_us)
        except Unopenable as failure:
            raise conflict("secret_unreadable", "Its secret cannot be read any more; rotate it.") from failure
    sample = BatchEvent(
        id=ids.event_id(),
        type=body.event_type,
        created_at=now_us // MICROSECONDS,
        data=EventSubject(id="batch_sample"),
        x_broker={"test": True},
    )
    async with WebhookSender(call.services.settings.webhooks) as sender:
        message = Message(sample.id, sample.model_dump_json().encode())
        answer = await sender.send(webhook.url, message, secrets, now_us)
    if answer.status is None:
        raise conflict("webhook_unreachable", f"The receiver did not answer: {answer.error}.")
    return shapes.WebhookTested(webhook_endpoint_id=webhook.id, event_type=body.event_type, status_code=answer.status)


async def list_event_types(call: Call) -> shapes.EventTypeList:
    """What a webhook can be told of."""
    return shapes.EventTypeList(data=list(get_args(shapes.EventType)))


async def list_deliveries(call: Call, query: shapes.PageQuery) -> shapes.WebhookDeliveryList:
    """What was or is to be sent to a webhook, newest first: attempts, last answer, next attempt."""
    async with call.services.database.transaction() as session:
        webhook = await _mine(session, call)
        page = await deliveries.page(session, webhook.id, after=query.after, limit=query.limit)
        shown = [shapes.delivery_shape(delivery) for delivery in page]
    return shapes.WebhookDeliveryList.of(shown, has_more=page.has_more, named="event_id")


async def retry_delivery(call: Call) -> shapes.WebhookDelivery:
    """Send an event now, again if need be, whatever became of it so far."""
    async with call.services.database.transaction() as session:
        webhook, event_id = await _mine(session, call), call.path("event_id")
        if webhook.disabled_us is not None:
            raise conflict("webhook_disabled", f"The webhook is disabled: {webhook.disabled_reason}; enable it first.")
        delivery = await session.get(Delivery, (webhook.id, event_id), with_for_update=True)
        if delivery is None or await deliveries.event_of(session, delivery) is None:
            raise not_found("delivery_not_found", f"No delivery of event {event_id!r} to this webhook is known.")
        deliveries.retry(delivery, await db_now(session))
        shown = shapes.delivery_shape(delivery)
    call.services.nudge("deliver")
    return shown


async def _mine(session: AsyncSession, call: Call) -> Webhook:
    webhook_id = call.path("webhook_id")
    webhook = await webhooks.find(session, call.project, webhook_id)
    if webhook is None:
        raise not_found("webhook_not_found", f"No webhook {webhook_id!r} in this project.")
    return webhook


_ALL = "/v1/webhook_endpoints"
_ONE = f"{_ALL}/{{webhook_id}}"

ROUTES: tuple[Route, ...] = (
    route("POST", _ALL, create, tag="webhooks", roles=("submitter",), errors=(422,)),
    route("GET", _ALL, list_webhooks, tag="webhooks", roles=READERS),
    route("GET", _ONE, get_webhook, tag="webhooks", roles=READERS),
    route("POST", _ONE, update, tag="webhooks", roles=("submitter",)),
    route("DELETE", _ONE, remove, tag="webhooks", roles=("submitter",)),
    route("POST", f"{_ONE}/rotate_secret", rotate_secret, tag="webhooks", roles=("submitter",)),
    route("POST", f"{_ONE}/test", test, tag="webhooks", roles=("submitter",), errors=(422,), is_body_optional=True),
    route("GET", f"{_ONE}/deliveries", list_deliveries, tag="webhooks", roles=READERS),
    route(
        "POST",
        f"{_ONE}/deliveries/{{event_id}}/retry",
        retry_delivery,
        tag="webhooks",
        roles=("submitter",),
        errors=(422,),
    ),
    route("GET", "/v1/webhook_event_types", list_event_types, tag="webhooks", roles=READERS),
)
