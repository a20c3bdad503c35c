"""Every line says what became of it, and every shard who holds it."""

from __future__ import annotations

from typing import Any

from broker.control.finalise import Finaliser
from tests.support.wire_agent import Agent, part_bytes


async def leased(agent: Agent) -> dict[str, Any]:
    return dict((await agent.lease())["lease"])


async def lines(server: Any, batch: str, query: str = "") -> list[dict[str, Any]]:
    answer = await server.call("GET", f"/v1/batches/{batch}/lines{query}")
    assert answer.status == 200, answer.raw
    return list(answer.json["data"])


async def test_lines_of_a_running_batch_say_what_became_of_each(server: Any, ready: tuple[Agent, str]) -> None:
    agent, batch = ready
    assert [line["status"] for line in await lines(server, batch)] == ["pending"] * 4
    lease = await leased(agent)
    await agent.work(lease, range(0, 2), failed=[1])
    beat = {
        "shard_id": lease["shard_id"],
        "epoch": lease["epoch"],
        "nonce": lease["nonce"],
        "in_flight": [3],
        "suspects": {},
    }
    assert (await agent.heartbeat(leases=[beat])).status == 200
    found = await lines(server, batch)
    assert [(line["line"], line["custom_id"], line["status"]) for line in found] == [
        (1, "line-0", "completed"),
        (2, "line-1", "failed"),
        (3, "line-2", "pending"),
        (4, "line-3", "in_flight"),
    ]
    assert found[0]["tokens"] == {"input": 7, "cached": 0, "output": 5, "reasoning": 0}
    assert (found[0]["status_code"], found[0]["error"], found[0]["attempts"]) == (200, None, 1)
    assert found[0]["placement"] == found[3]["placement"] == agent.rental
    assert found[1]["error"] == {"code": "context_length_exceeded", "message": "line 1 is too long for the model"}
    assert (found[2]["tokens"], found[2]["placement"]) == (None, None)


async def test_what_a_model_thought_is_counted_apart_from_what_it_answered_and_never_twice(
    server: Any, ready: tuple[Agent, str]
) -> None:
    """Reasoning tokens were always 0. Classes are disjoint (Langfuse #10592 counted one twice): they sum to what was metered."""
    agent, batch = ready
    lease = await leased(agent)
    content = part_bytes(range(2))
    target = (await agent.part(lease, content, 0)).json
    await agent.put(target, content)
    usage = [
        [0, "completed", 7, 5, 3, 1, False, 4],
        [1, "completed", 7, 5, 0, 1, False],
    ]  # the second by an older agent
    assert (await agent.commit(lease, target, content, range(2), usage=usage)).status == 200
    found = await lines(server, batch)
    assert found[0]["tokens"] == {"input": 7, "cached": 3, "output": 5, "reasoning": 4}
    told = (await server.call("GET", f"/v1/batches/{batch}")).json["usage"]
    assert (told["output_tokens"], told["output_tokens_details"]) == (10, {"reasoning_tokens": 4})
    costs = (await server.call("GET", f"/v1/batches/{batch}/unit-costs")).json
    assert costs["tokens"] == {"fresh_input": 11, "cached_input": 3, "output": 6, "reasoning": 4}
    assert sum(costs["tokens"].values()) == told["total_tokens"]


async def test_lines_are_filtered_by_status_and_paged_by_number(server: Any, ready: tuple[Agent, str]) -> None:
    agent, batch = ready
    await agent.work(await leased(agent), range(0, 3), failed=[0, 2])
    assert [line["line"] for line in await lines(server, batch, "?status=failed")] == [1, 3]
    assert [line["line"] for line in await lines(server, batch, "?status=completed")] == [2]
    assert [line["line"] for line in await lines(server, batch, "?status=pending")] == [4]
    for nothing in ("invalid", "expired", "cancelled", "in_flight"):
        assert await lines(server, batch, f"?status={nothing}") == [], nothing
    page = (await server.call("GET", f"/v1/batches/{batch}/lines?status=failed&limit=1")).json
    assert ([line["line"] for line in page["data"]], page["last_line"], page["has_more"]) == ([1], 1, True)
    rest = (await server.call("GET", f"/v1/batches/{batch}/lines?status=failed&limit=1&after=1")).json
    assert ([line["line"] for line in rest["data"]], rest["has_more"]) == ([3], False)
    empty = (await server.call("GET", f"/v1/batches/{batch}/lines?after=4")).json
    assert (empty["data"], empty["last_line"], empty["has_more"]) == ([], None, False)


async def test_a_line_is_found_by_its_custom_id_exactly(server: Any, ready: tuple[Agent, str]) -> None:
    agent, batch = ready
    await agent.work(await leased(agent), range(0, 2), failed=[1])
    [found] = await lines(server, batch, "?custom_id=line-1")
    assert (found["line"], found["custom_id"], found["status"]) == (2, "line-1", "failed")
    assert found["error"]["code"] == "context_length_exceeded"
    assert [line["line"] for line in await lines(server, batch, "?custom_id=line-3&status=pending")] == [4]
    for nothing in ("line", "LINE-1", "line-1 ", "line-1%25", "line-1&status=completed", "line-1&after=2"):
        assert await lines(server, batch, f"?custom_id={nothing}") == [], nothing
    for wrong in ("", "%00", "x" * 4097):
        assert (await server.call("GET", f"/v1/batches/{batch}/lines?custom_id={wrong}")).status == 400


async def test_lines_that_a_batch_ended_without_answering_keep_their_names(
    server: Any, ready: tuple[Agent, str]
) -> None:
    """Also when the input is deleted afterwards: names are kept when the batch ends."""
    agent, batch = ready
    await agent.work(await leased(agent), range(0, 2), failed=[1])
    assert (await server.call("POST", f"/v1/batches/{batch}/cancel")).status == 200
    await agent.heartbeat(leases=[])
    server.services.database.clock_offset_us += 3600 * 1_000_000
    await Finaliser(server.services).step()
    ended = (await server.call("GET", f"/v1/batches/{batch}")).json
    assert ended["status"] == "cancelled"
    before = await lines(server, batch)
    assert (await server.call("DELETE", f"/v1/files/{ended['input_file_id']}")).status == 200
    assert await lines(server, batch) == before
    assert [(line["custom_id"], line["status"], (line["error"] or {}).get("code")) for line in before] == [
        ("line-0", "completed", None),
        ("line-1", "failed", "context_length_exceeded"),
        ("line-2", "cancelled", "batch_cancelled"),
        ("line-3", "cancelled", "batch_cancelled"),
    ]
    assert [line["line"] for line in await lines(server, batch, "?status=cancelled")] == [3, 4]
    for n, line in enumerate(before):
        assert await lines(server, batch, f"?custom_id=line-{n}") == [line], "found by name without the input"
    assert await lines(server, batch, "?custom_id=line-0&status=cancelled") == []


async def test_shards_say_how_far_they_are_and_who_holds_them(server: Any, ready: tuple[Agent, str]) -> None:
    agent, batch = ready
    path = f"/v1/batches/{batch}/shards"
    (waiting,) = (await server.call("GET", path)).json["data"]
    assert (waiting["state"], waiting["placement"], waiting["epoch"], waiting["done"]) == ("pending", None, 0, 0)
    lease = await leased(agent)
    await agent.work(lease, range(0, 3))
    beat = {"shard_id": lease["shard_id"], "epoch": 1, "nonce": lease["nonce"], "in_flight": [3], "suspects": {"3": 2}}
    await agent.heartbeat(leases=[beat])
    (held,) = (await server.call("GET", path)).json["data"]
    assert (held["number"], held["id"], held["first_line"], held["lines"]) == (0, lease["shard_id"], 1, 4)
    assert (held["state"], held["placement"], held["epoch"], held["done"]) == ("leased", agent.rental, 1, 3)
    assert (held["in_flight"], held["suspects"]) == (1, 1)
    assert held["lease_expires_at"] > 0
    assert (await server.call("GET", f"{path}?after=0")).json == {
        "object": "list", "data": [], "last_shard": None, "has_more": False,
    }  # fmt: skip
