"""Webhooks end to end: made by the stock client, delivered over real HTTP, verified by the stock client."""

from __future__ import annotations

import asyncio
from typing import Any

import openai
import pytest
import standardwebhooks
from aiohttp import web
from openai import AsyncOpenAI

from broker.control.deliver import Deliverer
from broker.control.finalise import Finaliser
from broker.webhook_sender import WebhookSender
from tests.support.webhook_receiver import HOUR_US, Receive, deliver, deliveries, fail, hook
from tests.support.wire_agent import Agent, offer, part_bytes, running_batch


async def test_the_stock_client_makes_changes_lists_and_deletes_webhooks(client: AsyncOpenAI) -> None:
    made = await hook(client, "https://example.com/hook?a=b")
    assert made.signing_secret.startswith("whsec_")
    assert made.signing_secret[-4:] == made.signing_secret_hint[-4:]
    read = await client.webhooks.retrieve(made.id)
    assert (read.name, read.url, read.event_types) == ("ours", "https://example.com/hook?a=b", ["batch.failed"])
    assert "signing_secret" not in (read.model_extra or {})
    changed = await client.webhooks.update(made.id, name="theirs", event_types=["batch.completed", "batch.expired"])
    assert (changed.name, changed.url, changed.event_types) == (
        "theirs",
        read.url,
        ["batch.completed", "batch.expired"],
    )
    other = await hook(client, "https://example.com/other")
    assert [each.id async for each in client.webhooks.list(limit=1)] == [other.id, made.id]
    assert (await client.webhooks.delete(made.id)).deleted
    with pytest.raises(openai.NotFoundError):
        await client.webhooks.retrieve(made.id)
    assert "batch.completed" in (await client.webhooks.event_types.list()).data


async def test_without_events_a_webhook_is_told_of_ends(server: Any) -> None:
    made = (await server.call("POST", "/v1/webhook_endpoints", json={"url": "https://example.com/"})).json
    assert made["event_types"] == ["batch.completed", "batch.failed", "batch.expired", "batch.cancelled"]


async def test_the_stock_client_unwraps_what_is_delivered(
    client: AsyncOpenAI, server: Any, receive: Receive, deliverer: Deliverer, ready: tuple[Agent, str]
) -> None:
    agent, batch_id = ready
    receiver = await receive()
    made = await hook(client, receiver.url, event_types=["batch.completed"])
    assert (await agent.work((await agent.lease())["lease"], range(4))).status == 200
    await Finaliser(server.services).step()
    await deliver(deliverer)
    ((headers, body),) = receiver.got
    event = client.webhooks.unwrap(body, headers, secret=made.signing_secret)
    assert isinstance(event, openai.types.webhooks.BatchCompletedWebhookEvent)
    assert (event.data.id, event.object, event.id) == (batch_id, "event", headers["webhook-id"])
    assert event.model_extra is not None
    assert event.model_extra["x_broker"]["completed"] == 4
    assert standardwebhooks.Webhook(made.signing_secret).verify(body, dict(headers))["data"] == {"id": batch_id}
    for wrong_body, secret in ((body + b" ", made.signing_secret), (body, "whsec_" + "A" * 43 + "=")):
        with pytest.raises(openai.InvalidWebhookSignatureError):
            client.webhooks.unwrap(wrong_body, headers, secret=secret)


async def test_each_change_of_state_is_one_event_and_one_delivery(
    client: AsyncOpenAI, server: Any, receive: Receive, deliverer: Deliverer, rent: Any
) -> None:
    """Whatever is repeated: commits, cancellations, steps of the loops, and a second replica's deliver loop."""
    receiver = await receive()
    every = (await client.webhooks.event_types.list()).data
    made = await hook(client, receiver.url, event_types=every)
    batch = await running_batch(server, offer())
    agent = await rent()
    await agent.hello()
    await agent.heartbeat()
    lease = (await agent.lease())["lease"]
    assert (await agent.work(lease, range(2))).json["outcome"] == "committed"
    target = (await agent.part(lease, part_bytes(range(2)))).json
    assert (await agent.commit(lease, target, part_bytes(range(2)), range(2))).json["outcome"] == "replayed"
    for _ in range(2):
        assert (await server.call("POST", f"/v1/batches/{batch}/cancel")).status == 200
    await agent.post("goodbye", {"reason": "drain", "error": None})
    replica = Deliverer(server.services, WebhookSender(server.services.settings.webhooks))
    for _ in range(2):
        await Finaliser(server.services).step()
        await asyncio.gather(deliverer.step(), replica.step())
        await asyncio.gather(deliverer.settled(), replica.settled())
    await deliver(deliverer)
    await replica.close(within_s=0)
    assert sorted(receiver.types) == ["batch.cancelled", "batch.cancelling", "batch.in_progress", "batch.validating"]
    assert len(set(receiver.ids)) == 4
    assert [each["status"] for each in await deliveries(server, made.id)] == ["delivered"] * 4


async def test_a_receiver_that_fails_is_tried_eight_times_under_one_id_then_given_up(
    client: AsyncOpenAI, server: Any, receive: Receive, deliverer: Deliverer
) -> None:
    receiver = await receive()
    receiver.answers = [web.Response(status=status) for status in (500, 302, 404, 429, 400, 503, 500, 500)]
    made = await hook(client, receiver.url)
    await fail(server)
    waits = []
    for attempt in range(1, 9):
        await deliver(deliverer)
        (one,) = await deliveries(server, made.id)
        assert one["attempts"] == len(receiver.got) == attempt, "not before its time"
        if one["next_attempt_at"] is not None:
            waits.append(one["next_attempt_at"] - one["last_attempt_at"])
            server.services.database.clock_offset_us += (waits[-1] + 2) * 1_000_000
    assert len(set(receiver.ids)) == 1
    for waited, meant in zip(waits, (5, 30, 300, 1800, 7200, 18_000, 36_000), strict=True):
        assert 0.8 * meant - 1 <= waited <= 1.2 * meant + 1
    assert (one["status"], one["last_status_code"], one["next_attempt_at"]) == ("gave_up", 500, None)
    again = await server.call("POST", f"/v1/webhook_endpoints/{made.id}/deliveries/{one['event_id']}/retry")
    assert again.json["status"] == "pending"
    await deliver(deliverer)
    assert [each["status"] for each in await deliveries(server, made.id)] == ["delivered"]
    assert len(set(receiver.ids)) == 1


async def test_a_receiver_that_is_gone_is_told_nothing_more(
    client: AsyncOpenAI, server: Any, receive: Receive, deliverer: Deliverer
) -> None:
    receiver = await receive()
    receiver.answers = [web.Response(status=410)]
    made = await hook(client, receiver.url)
    for _ in range(2):
        await fail(server)
        await deliver(deliverer)
    assert len(receiver.got) == 1
    state = (await server.call("GET", f"/v1/webhook_endpoints/{made.id}")).json["x_broker"]
    assert (state["enabled"], state["disabled_reason"]) == (False, "it answered 410 Gone")
    await client.webhooks.update(made.id, extra_body={"x_broker": {"enabled": True}})
    await fail(server)
    await deliver(deliverer)
    assert len(receiver.got) == 2, "enabled, it is told of what happens from now on"


async def test_five_days_of_nothing_but_failures_disable_a_webhook(
    client: AsyncOpenAI, server: Any, receive: Receive, deliverer: Deliverer
) -> None:
    receiver = await receive()
    made = await hook(client, receiver.url)
    path = f"/v1/webhook_endpoints/{made.id}"
    await fail(server)
    receiver.answers = [web.Response(status=500)] * 100
    for days in range(6):
        assert (await server.call("GET", path)).json["x_broker"]["enabled"], f"still after {days} days"
        await fail(server)
        await deliver(deliverer)
        server.services.database.clock_offset_us += 24 * HOUR_US
    state = (await server.call("GET", path)).json["x_broker"]
    assert (state["enabled"], state["disabled_reason"]) == (False, "nothing but failures for 5 days")
    assert {each["status"] for each in await deliveries(server, made.id)} == {"gave_up"}


async def test_a_slow_receiver_delays_nobody_else(
    client: AsyncOpenAI, server: Any, receive: Receive, deliverer: Deliverer
) -> None:
    slow, quick = await receive(), await receive()
    slow.gate = asyncio.Event()
    for receiver in (slow, quick):
        await hook(client, receiver.url)
    await fail(server)
    for _ in range(2):
        await deliverer.step()
        async with asyncio.timeout(30):
            await quick.arrived.wait()
            await slow.arrived.wait()
        quick.arrived.clear()
        await fail(server)
    assert (len(slow.got), len(quick.got)) == (1, 2)
    slow.gate.set()
    await deliver(deliverer)
    assert (len(slow.got), len(quick.got)) == (3, 3)


async def test_a_broker_that_dies_after_sending_sends_again_under_the_same_id(
    client: AsyncOpenAI, server: Any, receive: Receive
) -> None:
    receiver = await receive()
    receiver.gate = asyncio.Event()
    made = await hook(client, receiver.url)
    await fail(server)
    dying = Deliverer(server.services, WebhookSender(server.services.settings.webhooks))
    await dying.step()
    async with asyncio.timeout(30):
        await receiver.arrived.wait()
    await dying.close(within_s=0)
    receiver.gate.set()
    next_start = Deliverer(server.services, WebhookSender(server.services.settings.webhooks))
    await deliver(next_start)
    assert len(receiver.got) == 1, "the attempt may still be under way"
    server.services.database.clock_offset_us += 61 * 1_000_000
    await deliver(next_start)
    await next_start.close(within_s=0)
    assert len(receiver.got) == 2
    assert len(set(receiver.ids)) == 1
    assert [each["status"] for each in await deliveries(server, made.id)] == ["delivered"]


async def test_a_redirect_is_not_followed(
    client: AsyncOpenAI, server: Any, receive: Receive, deliverer: Deliverer
) -> None:
    receiver, elsewhere = await receive(), await receive()
    receiver.answers = [web.Response(status=307, headers={"Location": elsewhere.url})]
    await hook(client, receiver.url)
    await fail(server)
    await deliver(deliverer)
    assert (len(receiver.got), len(elsewhere.got)) == (1, 0)


async def test_a_rotated_secret_may_overlap_for_a_day(
    client: AsyncOpenAI, server: Any, receive: Receive, deliverer: Deliverer
) -> None:
    receiver = await receive()
    made = await hook(client, receiver.url)
    kept = await client.webhooks.rotate_secret(made.id, keep_old_secret_active_for_24_hours=True)
    await fail(server)
    await deliver(deliverer)
    alone = await client.webhooks.rotate_secret(made.id)
    await fail(server)
    await deliver(deliverer)
    (first, first_body), (second, second_body) = receiver.got
    for secret in (made.signing_secret, kept.signing_secret):
        client.webhooks.unwrap(first_body, first, secret=secret)
    client.webhooks.unwrap(second_body, second, secret=alone.signing_secret)
    with pytest.raises(openai.InvalidWebhookSignatureError):
        client.webhooks.unwrap(second_body, second, secret=kept.signing_secret)


async def test_a_sample_is_sent_at_once_and_its_answer_told(client: AsyncOpenAI, receive: Receive) -> None:
    receiver = await receive()
    receiver.answers = [web.Response(status=418)]
    made = await hook(client, receiver.url)
    tested = await client.webhooks.test(made.id, event_type="batch.expired")
    assert (tested.status_code, tested.event_type, tested.webhook_endpoint_id) == (418, "batch.expired", made.id)
    ((headers, body),) = receiver.got
    assert client.webhooks.unwrap(body, headers, secret=made.signing_secret).type == "batch.expired"
    await client.webhooks.update(made.id, url="http://127.0.0.1:9/nobody")
    with pytest.raises(openai.UnprocessableEntityError) as refused:
        await client.webhooks.test(made.id, event_type="batch.expired")
    assert refused.value.code == "webhook_unreachable"


async def test_a_sample_can_be_asked_for_without_a_body(server: Any, client: AsyncOpenAI, receive: Receive) -> None:
    made = await hook(client, (await receive()).url)
    tested = await server.call("POST", f"/v1/webhook_endpoints/{made.id}/test")
    assert (tested.status, tested.json["event_type"]) == (200, "batch.completed")


async def test_a_webhook_hears_of_its_own_project_since_it_was_made(
    client: AsyncOpenAI, server: Any, receive: Receive, deliverer: Deliverer
) -> None:
    mine, theirs = await receive(), await receive()
    await fail(server)
    await hook(client, mine.url)
    async with server.openai(await server.key("submitter", project="theirs")) as other:
        foreign = await hook(other, theirs.url)
    await deliver(deliverer)
    assert (mine.got, theirs.got) == ([], [])
    await fail(server)
    await deliver(deliverer)
    assert (len(mine.got), len(theirs.got)) == (1, 0)
    for method, path in (("GET", ""), ("DELETE", ""), ("GET", "/deliveries"), ("POST", "/deliveries/evt_1/retry")):
        answer = await server.call(method, f"/v1/webhook_endpoints/{foreign.id}{path}")
        assert (answer.status, answer.code) == (404, "webhook_not_found")


async def test_a_project_has_so_many_webhooks(client: AsyncOpenAI) -> None:
    for _ in range(3):
        await hook(client, "https://example.com/")
    with pytest.raises(openai.UnprocessableEntityError) as refused:
        await hook(client, "https://example.com/")
    assert refused.value.code == "too_many_webhooks"
