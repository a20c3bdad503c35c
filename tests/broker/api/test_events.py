"""Events of a batch: the stock client's decoder reads the stream, and what it is told is complete, in order, once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import openai
import pytest
from aiohttp import web
from openai import AsyncOpenAI, AsyncStream

from broker.api.app import build_app
from broker.control.finalise import Finaliser
from broker.database import Database
from broker.settings import HttpSettings, Settings
from jobs import batches
from tests.support.wire_agent import Agent

ENDED = ["batch.validating", "batch.in_progress", "part.committed", "batch.finalizing", "batch.completed"]


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"http": HttpSettings(streams_per_key=2, stream_heartbeat_s=0.02)})


@pytest.fixture
async def client(server: Any) -> AsyncIterator[AsyncOpenAI]:
    async with server.openai(await server.key("submitter"), max_retries=0) as client:
        yield client


async def listen(client: AsyncOpenAI, batch_id: str, after: str | None = None) -> AsyncStream[Any]:
    options: Any = {"params": {"stream": "true"}}
    if after is not None:
        options["headers"] = {"Last-Event-ID": after}
    path = f"/batches/{batch_id}/events"
    return await client.get(path, cast_to=object, stream=True, stream_cls=AsyncStream[Any], options=options)


async def cancel(database: Database, batch_id: str) -> None:
    """Something happens to the batch: one more event."""
    async with database.transaction() as session:
        await batches.cancel(session, "default", batch_id)


async def complete(server: Any, agent: Agent) -> None:
    lease = (await agent.lease())["lease"]
    assert (await agent.work(lease, range(4))).status == 200
    await Finaliser(server.services).step()


async def test_the_stock_client_hears_a_whole_life_live(client: Any, server: Any, ready: tuple[Agent, str]) -> None:
    agent, batch_id = ready
    stream = await listen(client, batch_id)
    heard = [await anext(stream), await anext(stream)]
    assert heard[-1]["x_broker"]["to"] == "in_progress"
    await complete(server, agent)
    heard += [event async for event in stream]  # it ends by itself
    assert [event["type"] for event in heard] == ENDED
    assert [event["x_broker"]["number"] for event in heard] == [1, 2, 3, 4, 5]
    assert {(event["object"], event["data"]["id"]) for event in heard} == {("event", batch_id)}
    assert heard[-1]["x_broker"]["completed"] == heard[-1]["x_broker"]["total"] == 4


async def test_a_stream_resumes_after_any_event_without_loss_or_repetition(
    client: Any, server: Any, ready: tuple[Agent, str]
) -> None:
    agent, batch_id = ready
    await complete(server, agent)
    whole = [event async for event in await listen(client, batch_id)]
    for position, event in enumerate(whole[:-1]):
        rest = [later["id"] async for later in await listen(client, batch_id, after=event["id"])]
        assert rest == [later["id"] for later in whole[position + 1 :]]
    header = {"Last-Event-ID": whole[-1]["id"], "Accept": "text/event-stream"}
    answer = await server.call("GET", f"/v1/batches/{batch_id}/events", headers=header)
    assert answer.status == 204, "an EventSource asks again and again until it is told 204"


async def test_heartbeats_keep_a_silent_stream_open_and_break_no_decoder(
    client: Any, server: Any, database: Database
) -> None:
    """The openai decoder dispatches an empty event at every blank line after it has seen an id."""
    batch = await server.new_batch()
    headers = {"Authorization": f"Bearer {server.admin_key}", "Accept": "text/event-stream"}
    stream = await listen(client, batch["id"])
    assert (await anext(stream))["type"] == "batch.validating"
    async with server.http.get(f"{server.url}/v1/batches/{batch['id']}/events", headers=headers) as raw:
        assert raw.headers["Content-Type"].startswith("text/event-stream")
        beats = 0
        async for line in raw.content:
            beats += line.startswith(b":")
            if beats == 5:
                break
    await cancel(database, batch["id"])
    assert (await anext(stream))["type"] == "batch.cancelling"
    await stream.close()


async def test_pages_hold_the_same_events(client: Any, server: Any, ready: tuple[Agent, str]) -> None:
    agent, batch_id = ready
    await complete(server, agent)
    path, found, after = f"/v1/batches/{batch_id}/events?limit=2", [], ""
    while True:
        page = (await server.call("GET", path + after)).json
        assert page["object"] == "list"
        found += page["data"]
        if not page["has_more"]:
            break
        after = f"&after={page['last_id']}"
    heard = [event async for event in await listen(client, batch_id)]
    assert found == heard


async def test_an_event_of_another_batch_or_of_none_is_refused(client: Any, server: Any) -> None:
    one, other = await server.new_batch(), await server.new_batch()
    foreign = (await server.call("GET", f"/v1/batches/{other['id']}/events")).json["first_id"]
    for wrong in (foreign, "evt_nothing"):
        with pytest.raises(openai.BadRequestError) as refused:
            await listen(client, one["id"], after=wrong)
        assert refused.value.code == "event_not_found"


async def test_a_key_listens_to_so_many_streams_and_a_listener_that_leaves_frees_its_place(
    client: Any, server: Any
) -> None:
    batch = await server.new_batch()
    first, second = [await listen(client, batch["id"]) for _ in range(2)]
    with pytest.raises(openai.RateLimitError) as refused:
        await listen(client, batch["id"])
    assert refused.value.code == "too_many_streams"
    assert int(refused.value.response.headers["retry-after"]) > 0
    async with server.openai(max_retries=0) as another:
        await (await listen(another, batch["id"])).close()  # another key has its own
    await first.close()
    async with asyncio.timeout(20):
        while True:
            try:
                third = await listen(client, batch["id"])
                break
            except openai.RateLimitError:
                await asyncio.sleep(0.02)
    await second.close()
    await third.close()


async def test_a_revoked_key_is_told_nothing_more(client: Any, server: Any, database: Database) -> None:
    made = (await server.call("POST", "/v1/admin/keys", json={"principal": "ada", "roles": ["viewer"],
                                                              "project": "default"})).json  # fmt: skip
    batch = await server.new_batch()
    async with server.openai(made["key"], max_retries=0) as theirs:
        stream = await listen(theirs, batch["id"])
        assert (await anext(stream))["type"] == "batch.validating"
        await server.call("DELETE", f"/v1/admin/keys/{made['id']}")
        await cancel(database, batch["id"])
        assert [event async for event in stream] == []


async def test_what_another_replica_writes_is_heard(client: Any, server: Any, database: Database) -> None:
    """Another process's commits wake nobody here; the poller finds them."""
    batch = await server.new_batch()
    stream = await listen(client, batch["id"])
    assert (await anext(stream))["type"] == "batch.validating"
    replica = Database(database.url)
    await cancel(replica, batch["id"])
    assert (await anext(stream))["type"] == "batch.cancelling"
    await stream.close()
    await replica.close()


async def test_a_stopping_server_ends_its_streams_at_once(client: Any, server: Any, services_app: Any) -> None:
    batch = await server.new_batch()
    async with server.openai(base_url=f"{services_app.url}/v1", max_retries=0) as there:
        stream = await listen(there, batch["id"])
        assert (await anext(stream))["type"] == "batch.validating"
        stopping = asyncio.create_task(services_app.runner.cleanup())
        assert [event async for event in stream] == []
        await stopping


@pytest.fixture
async def services_app(server: Any) -> AsyncIterator[Any]:
    """A second application over the same services, to be stopped by the test."""
    runner = web.AppRunner(build_app(server.services), access_log=None, shutdown_timeout=60)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield SimpleNamespace(runner=runner, url=f"http://127.0.0.1:{runner.addresses[0][1]}")
    await runner.cleanup()
