"""What is kept of webhooks, and how long: secrets, records of deliveries, attempts that a crash or another broker cut across."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from aiohttp import web
from openai import AsyncOpenAI
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import text

from broker.control.deliver import Deliverer
from broker.deliveries import due, expand
from broker.webhook_sender import WebhookSender
from jobs.clock import db_now
from tests.support.webhook_receiver import HOUR_US, Receive, deliver, deliveries, fail, hook


async def test_a_secret_is_neither_stored_nor_logged_nor_a_url_logged(
    client: AsyncOpenAI, server: Any, receive: Receive, deliverer: Deliverer, capsys: Any
) -> None:
    receiver = await receive()
    receiver.answers = [web.Response(status=500)]
    made = await hook(client, receiver.url + "?token=hush-hush")
    await fail(server)
    await deliver(deliverer)
    await client.webhooks.update(made.id, url="http://127.0.0.1:9/?token=hush-hush")
    server.services.database.clock_offset_us += HOUR_US
    await deliver(deliverer)
    out, err = capsys.readouterr()
    assert "delivery.tried" in out + err
    assert "hush-hush" not in out + err
    assert made.signing_secret[6:] not in out + err
    async with server.services.database.transaction() as session:
        (row,) = await session.execute(text("SELECT * FROM broker_webhook"))
    assert made.signing_secret[6:20] not in repr(tuple(row))


async def test_a_secret_that_does_not_open_disables_its_webhook(
    client: AsyncOpenAI, server: Any, receive: Receive, deliverer: Deliverer
) -> None:
    """Sealed secrets are bound to their webhook: a row's secret is worth nothing in another row."""
    receiver = await receive()
    one, other = await hook(client, receiver.url), await hook(client, receiver.url)
    async with server.services.database.transaction() as session:
        moved = (
            "UPDATE broker_webhook SET secret = (SELECT secret FROM broker_webhook WHERE id = :one) WHERE id = :other"
        )
        await session.execute(text(moved), {"one": one.id, "other": other.id})
    await fail(server)
    await deliver(deliverer)
    assert len(receiver.got) == 1
    state = (await server.call("GET", f"/v1/webhook_endpoints/{other.id}")).json["x_broker"]
    assert "rotate it" in state["disabled_reason"]


async def test_what_was_expanded_for_a_webhook_that_is_deleted_or_disabled_is_not_sent(
    client: AsyncOpenAI, server: Any, receive: Receive, deliverer: Deliverer
) -> None:
    """On PostgreSQL an event may be expanded beside a deletion; its delivery must not stay due for ever."""
    receiver = await receive()
    gone, off = await hook(client, receiver.url), await hook(client, receiver.url)
    await fail(server)
    async with server.services.database.transaction() as session:
        now_us = await db_now(session)
        assert await expand(session, now_us, 100) == 2
        await session.execute(text("DELETE FROM broker_webhook WHERE id = :id"), {"id": gone.id})
        switched = text("UPDATE broker_webhook SET disabled_us = 1, disabled_reason = 'by ada' WHERE id = :id")
        await session.execute(switched, {"id": off.id})
    await deliver(deliverer)
    async with server.services.database.transaction() as session:
        assert await due(session, now_us + HOUR_US, 10) == []
    assert receiver.got == []
    assert [each["last_error"] for each in await deliveries(server, off.id)] == ["the webhook was disabled: by ada"]


async def test_what_is_old_and_over_is_forgotten_and_nothing_else(
    client: AsyncOpenAI, server: Any, receive: Receive, deliverer: Deliverer
) -> None:
    receiver = await receive()
    made = await hook(client, receiver.url)
    ended, still_open = await fail(server), (await server.new_batch())["id"]
    await deliver(deliverer)
    server.services.database.clock_offset_us += 29 * 24 * HOUR_US
    await deliver(deliverer)
    assert len(await deliveries(server, made.id)) == 1
    server.services.database.clock_offset_us += 2 * 24 * HOUR_US
    await deliver(deliverer)
    assert await deliveries(server, made.id) == []
    for batch_id, left in ((ended, 0), (still_open, 1)):
        assert len((await server.call("GET", f"/v1/batches/{batch_id}/events")).json["data"]) == left


async def test_metrics_count_deliveries_without_ids(
    client: AsyncOpenAI, server: Any, receive: Receive, deliverer: Deliverer
) -> None:
    receiver = await receive()
    receiver.answers = [web.Response(), web.Response(status=500)]
    made = await hook(client, receiver.url)
    for _ in range(2):
        await fail(server)
        await deliver(deliverer)
    exposed = (await server.call("GET", "/metrics")).raw.decode()
    assert made.id not in exposed
    samples = {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(exposed)
        for sample in family.samples
    }
    assert samples["broker_webhooks", "failing"] == 1, "enabled, and its last answer was a failure"
    assert samples["broker_webhook_deliveries", "delivered"] == 1
    assert samples["broker_webhook_deliveries", "pending"] == 1
    assert samples["broker_webhook_deliveries", "gave_up"] == 0
    assert samples[("broker_events_waiting",)] == 0


async def test_what_is_learned_of_an_attempt_after_another_took_its_delivery_over_changes_nothing(
    client: AsyncOpenAI, server: Any, receive: Receive
) -> None:
    receiver = await receive()
    made = await hook(client, receiver.url)
    await fail(server)
    slow, quick = (Deliverer(server.services, WebhookSender(server.services.settings.webhooks)) for _ in range(2))
    receiver.gate, receiver.answers = asyncio.Event(), [web.Response(), web.Response(status=410)]
    await slow.step()
    async with asyncio.timeout(30):
        await receiver.arrived.wait()
    held, receiver.gate = receiver.gate, None
    server.services.database.clock_offset_us += 61 * 1_000_000
    await deliver(quick)
    held.set()
    await slow.settled()
    assert (len(receiver.got), len(set(receiver.ids))) == (2, 1)
    (one,) = await deliveries(server, made.id)
    assert (one["status"], one["attempts"], one["last_status_code"]) == ("delivered", 2, 200)
    assert (await server.call("GET", f"/v1/webhook_endpoints/{made.id}")).json["x_broker"]["enabled"], (
        "in spite of the 410"
    )
    for each in (slow, quick):
        await each.close(within_s=0)


async def test_a_crash_between_an_attempt_and_its_record_sends_again_under_the_same_id(
    client: AsyncOpenAI, server: Any, receive: Receive, deliverer: Deliverer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(point: str) -> None:
        if point == "deliver.after_send":
            raise OSError("the disk went away")

    receiver = await receive()
    made = await hook(client, receiver.url)
    await fail(server)
    monkeypatch.setattr(server.services.failpoints, "reached", crash)
    await deliverer.step()
    with pytest.raises(OSError, match="the disk went away"):
        await deliverer.settled()
    monkeypatch.undo()
    assert [each["status"] for each in await deliveries(server, made.id)] == ["pending"]
    server.services.database.clock_offset_us += 61 * 1_000_000
    await deliver(deliverer)
    assert (len(receiver.got), len(set(receiver.ids))) == (2, 1)
    assert [each["status"] for each in await deliveries(server, made.id)] == ["delivered"]
