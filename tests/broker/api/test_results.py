"""Answers at any time: so far, in either order, each line once, and resumable without ever mixing two states."""

from __future__ import annotations

import json
from typing import Any

import pytest

from broker.control.finalise import Finaliser
from tests.support.wire_agent import Agent

IDS = ["line-0", "line-1", "line-2", "line-3"]


async def results(server: Any, batch: str, query: str = "", **headers: str) -> Any:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return await server.call("GET", f"/v1/batches/{batch}/results{query}", headers=named)


def ids(answer: Any) -> list[str]:
    assert answer.status == 200, answer.raw
    assert answer.headers["Content-Type"] == "application/jsonl"
    return [json.loads(line)["custom_id"] for line in answer.raw.splitlines()]


async def leased(agent: Agent) -> dict[str, Any]:
    return dict((await agent.lease())["lease"])


async def views(server: Any, batch: str) -> list[str]:
    return [key async for key in server.services.store.keys(f"default/{batch}/views")]


async def end(server: Any, batch: str) -> dict[str, Any]:
    await Finaliser(server.services).step()
    ended = (await server.call("GET", f"/v1/batches/{batch}")).json
    assert ended["status"] in ("completed", "expired", "cancelled"), ended["status"]
    return dict(ended)


async def content(server: Any, file_id: str) -> bytes:
    return bytes((await server.call("GET", f"/v1/files/{file_id}/content")).raw)


async def test_a_running_batch_gives_what_is_committed_so_far(server: Any, ready: tuple[Agent, str]) -> None:
    agent, batch = ready
    assert ids(await results(server, batch)) == []
    lease = await leased(agent)
    await agent.work(lease, range(2, 3), seq=1)
    first = await results(server, batch)
    assert ids(first) == ["line-2"]
    await agent.work(lease, range(0, 2), seq=2, failed=[1])
    assert ids(await results(server, batch)) == ["line-0", "line-2"]
    assert ids(await results(server, batch, "?order=completion")) == ["line-2", "line-0"]
    assert ids(await results(server, batch, "?kind=errors")) == ["line-1"], "lines without an answer are not errors yet"


async def test_what_is_read_so_far_is_word_for_word_what_the_final_file_says(
    server: Any, ready: tuple[Agent, str]
) -> None:
    agent, batch = ready
    lease = await leased(agent)
    await agent.work(lease, range(0, 3), seq=1)
    early = (await results(server, batch)).raw
    await agent.work(lease, range(3, 4), seq=2)
    ended = await end(server, batch)
    whole = await content(server, ended["output_file_id"])
    assert whole.startswith(early)
    assert (await results(server, batch)).raw == whole
    assert ids(await results(server, batch, "?kind=errors")) == []


async def test_an_ended_batch_is_read_in_the_other_order_too(server: Any, ready: tuple[Agent, str]) -> None:
    agent, batch = ready
    lease = await leased(agent)
    await agent.work(lease, range(2, 4), seq=1)
    await agent.work(lease, range(0, 2), seq=2)
    await end(server, batch)
    assert ids(await results(server, batch)) == IDS
    assert ids(await results(server, batch, "?order=completion")) == ["line-2", "line-3", "line-0", "line-1"]
    assert ids(await results(server, batch, "?order=input")) == IDS


async def test_a_resumed_download_never_mixes_two_states(server: Any, ready: tuple[Agent, str]) -> None:
    agent, batch = ready
    lease = await leased(agent)
    await agent.work(lease, range(1, 2), seq=1)
    first = await results(server, batch)
    etag = first.headers["ETag"]
    assert not etag.startswith("W/")
    part = await results(server, batch, Range="bytes=5-", If_Range=etag)
    assert (part.status, part.raw) == (206, first.raw[5:])
    assert (await results(server, batch, If_None_Match=etag)).status == 304
    await agent.work(lease, range(0, 1), seq=2)
    resumed = await results(server, batch, Range="bytes=5-", If_Range=etag)
    assert resumed.headers["ETag"] != etag
    assert ids(resumed) == ["line-0", "line-1"], "another state is sent whole"
    assert (await results(server, batch, If_None_Match=etag)).status == 200
    beyond = await results(server, batch, Range="bytes=100000-")
    assert (beyond.status, beyond.code) == (416, "invalid_range")


async def test_a_state_that_did_not_change_is_composed_once(server: Any, ready: tuple[Agent, str]) -> None:
    agent, batch = ready
    await agent.work(await leased(agent), range(0, 2))
    await results(server, batch)
    (key,) = await views(server, batch)
    await server.services.store.delete(key)
    await server.services.store.put(key, b'{"custom_id": "kept"}\n')
    assert ids(await results(server, batch)) == ["kept"]


async def test_views_are_replaced_and_gone_when_the_batch_ends(server: Any, ready: tuple[Agent, str]) -> None:
    agent, batch = ready
    lease = await leased(agent)
    for line in range(3):
        await agent.work(lease, range(line, line + 1), seq=line)
        for query in ("", "?order=completion"):
            await results(server, batch, query)
        assert len(await views(server, batch)) == 2, "one a kind and order"
    await agent.work(lease, range(3, 4), seq=3)
    await end(server, batch)
    assert await views(server, batch) == []
    await results(server, batch)
    assert await views(server, batch) == [], "the published file needs none"


async def test_a_deleted_output_is_gone_by_every_door(server: Any, ready: tuple[Agent, str]) -> None:
    agent, batch = ready
    await agent.work(await leased(agent), range(0, 4))
    ended = await end(server, batch)
    await results(server, batch, "?order=completion")
    assert (await server.call("DELETE", f"/v1/files/{ended['output_file_id']}")).status == 200
    for query in ("", "?order=input", "?order=completion"):
        answer = await results(server, batch, query)
        assert (answer.status, answer.code) == (404, "file_gone")
    assert ids(await results(server, batch, "?kind=errors")) == []
    assert await views(server, batch) == [], "its bytes are gone too"


@pytest.mark.parametrize("query", ["?kind=answers", "?order=random", "?kind=output&kind=errors"])
async def test_an_unknown_kind_or_order_is_a_400(server: Any, ready: tuple[Agent, str], query: str) -> None:
    answer = await results(server, ready[1], query)
    assert (answer.status, answer.json["error"]["param"]) == (400, query[1:].split("=", maxsplit=1)[0])


async def test_head_says_of_a_file_and_of_results_what_get_would_and_sends_none_of_it(
    server: Any, ready: tuple[Agent, str]
) -> None:
    agent, batch = ready
    path = f"/v1/batches/{batch}/results"
    assert (await server.call("HEAD", path)).status == 200, "nothing is answered yet"
    await agent.work(await leased(agent), range(0, 4))
    file_id = (await end(server, batch))["output_file_id"]
    for of in (path, f"{path}?order=completion", f"/v1/files/{file_id}/content"):
        head, whole = await server.call("HEAD", of), await server.call("GET", of)
        assert (head.status, head.raw, head.headers["Content-Length"]) == (200, b"", str(len(whole.raw)))
        assert {name: head.headers[name] for name in ("ETag", "Content-Type")} == {
            name: whole.headers[name] for name in ("ETag", "Content-Type")
        }
        known = await server.call("HEAD", of, headers={"If-None-Match": whole.headers["ETag"]})
        assert known.status == 304
    assert (await server.call("HEAD", "/v1/files/file-none/content")).status == 404
