"""Pause, resume and change over HTTP."""

from __future__ import annotations

from typing import Any

import pytest

from broker.control.validate import Validator
from tests.support.wire_agent import offer, running_batch

TOWN = offer()


async def at_work(server: Any, rent: Any, lines: int = 4) -> tuple[str, Any]:
    """A running batch and a worker that is let in."""
    batch = await running_batch(server, TOWN, lines=lines)
    agent = await rent(TOWN)
    assert (await agent.hello()).status == 200
    await agent.heartbeat()
    return batch, agent


async def do(server: Any, batch: str, what: str) -> dict[str, Any]:
    answer = await server.call("POST", f"/v1/batches/{batch}/{what}")
    assert answer.status == 200, answer.raw
    return dict(answer.json)


async def change(server: Any, batch: str, **x_broker: Any) -> Any:
    return await server.call("PATCH", f"/v1/batches/{batch}", json={"x_broker": x_broker})


async def test_a_paused_batch_hands_out_nothing_keeps_what_is_finished_and_goes_on_where_it_was(
    server: Any, rent: Any
) -> None:
    batch, agent = await at_work(server, rent)
    lease = (await agent.lease())["lease"]
    held = {name: lease[name] for name in ("shard_id", "epoch", "nonce")} | {"in_flight": [0, 1], "suspects": {}}
    paused = await do(server, batch, "pause")
    assert (paused["status"], paused["x_broker"]["paused"]) == ("in_progress", True)
    assert (await agent.heartbeat(leases=[held])).json["lost"] == [lease["shard_id"]]
    assert (await agent.work(lease, range(0, 2))).json["outcome"] == "committed"
    assert (await agent.heartbeat()).status == 200
    assert (await agent.lease())["lease"] is None
    resumed = await do(server, batch, "resume")
    assert resumed["x_broker"]["paused"] is False
    again = (await agent.lease())["lease"]
    assert again["done"] == [[0, 2]]
    await agent.work(again, range(2, 4))
    assert (await server.call("GET", f"/v1/batches/{batch}")).json["request_counts"]["completed"] == 4


async def test_only_a_batch_that_has_not_ended_is_paused_resumed_or_changed(server: Any) -> None:
    batch = (await server.new_batch())["id"]
    await Validator(server.services).step()  # no offer at all: it waits
    await do(server, batch, "cancel")
    for what in ("pause", "resume"):
        refused = await server.call("POST", f"/v1/batches/{batch}/{what}")
        assert (refused.status, refused.code) == (422, "invalid_state")
        assert "cancelling" in refused.json["error"]["message"]
    assert (await change(server, batch, priority=1)).status == 422


async def test_a_change_sets_what_it_names_and_nothing_else(server: Any) -> None:
    batch = await server.new_batch(x_broker={"max_usd": "5", "priority": 3})
    deadline = batch["created_at"] + 7 * 86_400
    changed = (await change(server, batch["id"], deadline=deadline)).json
    assert changed["expires_at"] == changed["x_broker"]["deadline"] == deadline
    assert (changed["x_broker"]["max_usd"], changed["x_broker"]["priority"]) == ("5", 3)
    changed = (await change(server, batch["id"], max_usd=None, priority=-2)).json
    assert (changed["x_broker"]["max_usd"], changed["x_broker"]["priority"]) == (None, -2)
    assert changed["expires_at"] == deadline
    events = (await server.call("GET", f"/v1/batches/{batch['id']}/events?stream=false")).json["data"]
    told = [event["x_broker"] for event in events if event["type"] == "batch.changed"]
    assert (told[0]["deadline"], told[0]["expires_at"]) == (deadline, deadline)
    assert told[1].items() >= {"max_usd": None, "priority": -2}.items()
    assert not [name for event in told for name in event if name.endswith("_us")], "the API's times are unix seconds"


@pytest.mark.parametrize(
    ("wanted", "param"),
    [
        ({"deadline": 1}, "x_broker.deadline"),  # past
        ({"deadline": 2**62}, "x_broker.deadline"),  # milliseconds
        ({"deadline": 4_000_000_000}, "x_broker.deadline"),  # beyond thirty days
        ({"max_usd": "-1"}, "x_broker.max_usd"),
        ({"max_usd": "\uff19.5"}, "x_broker.max_usd"),  # a digit, but not one that every reader of money knows
        ({"priority": None}, "x_broker.priority"),
        ({"residency": ["de"]}, "x_broker.residency"),  # pinned when the batch was made
    ],
)
async def test_a_wrong_change_is_refused_with_its_name(server: Any, wanted: dict[str, Any], param: str) -> None:
    batch = await server.new_batch()
    answer = await change(server, batch["id"], **wanted)
    assert (answer.status, answer.json["error"]["param"]) == (400, param)
    assert (await server.call("GET", f"/v1/batches/{batch['id']}")).json["expires_at"] == batch["expires_at"]


@pytest.mark.parametrize("tags", [{"x" * 65: "y"}, {"x": "y" * 513}])
async def test_a_tag_is_as_long_as_metadata_may_be(server: Any, tags: dict[str, str]) -> None:
    body = {"input_file_id": "file-none", "endpoint": "/v1/chat/completions", "x_broker": {"tags": tags}}
    refused = await server.call("POST", "/v1/batches", json=body)
    assert (refused.status, refused.code) == (400, "invalid_value")
    assert refused.json["error"]["param"].startswith("x_broker.tags")


async def test_a_batch_shows_everything_that_was_wished(server: Any) -> None:
    wishes = {
        "confidentiality": "none",
        "precision": ["bf16"],
        "models": ["tiny"],
        "tags": {"team": "red"},
        "on_infeasible": "queue",
        "skip_invalid": True,
        "reuse": True,
    }
    batch = await server.new_batch(x_broker=wishes)
    assert {name: batch["x_broker"][name] for name in wishes} == wishes
    assert batch["x_broker"]["placements"] == []
    assert batch["x_broker"]["reused"] == {"lines": 0, "input_tokens": 0, "output_tokens": 0, "saved_usd": "0"}
    (listed,) = (await server.call("GET", "/v1/batches")).json["data"]
    assert listed["x_broker"]["placements"] is None
