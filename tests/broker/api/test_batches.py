"""Batches over HTTP: repeating is safe, wishes are pinned, and what is shown comes from the other rooms."""

from __future__ import annotations

from typing import Any

import msgspec
from sqlalchemy import func, select

from broker.control.validate import Validator
from broker.tables import Policy, Project
from jobs.tables import Batch
from solver.residency import INTERNAL, compile_countries, digest
from solver.residency import Policy as ResidencyPolicy

RETRY = {"x-stainless-retry-count": "1"}


def body_of(file_id: str, **fields: Any) -> dict[str, Any]:
    return {"input_file_id": file_id, "endpoint": "/v1/chat/completions", "completion_window": "24h", **fields}


async def count(server: Any) -> int:
    async with server.services.database.transaction() as session:
        return int(await session.scalar(select(func.count()).select_from(Batch)) or 0)


async def test_the_same_idempotency_key_is_the_same_batch(server: Any, input_lines: Any) -> None:
    file_id = await server.upload(input_lines(1))
    key = {"Idempotency-Key": "order-7"}
    first = await server.call("POST", "/v1/batches", json=body_of(file_id), headers=key)
    again = await server.call("POST", "/v1/batches", json=body_of(file_id), headers=key)
    assert again.json["id"] == first.json["id"]
    other = await server.call("POST", "/v1/batches", json=body_of(file_id, metadata={"a": "b"}), headers=key)
    assert (other.status, other.code) == (422, "idempotency_mismatch")
    assert await count(server) == 1


async def test_an_sdks_retry_is_the_same_batch_and_a_persons_second_wish_is_not(server: Any, input_lines: Any) -> None:
    file_id = await server.upload(input_lines(1))
    first = await server.call("POST", "/v1/batches", json=body_of(file_id))
    retried = await server.call("POST", "/v1/batches", json=body_of(file_id), headers=RETRY)
    assert retried.json["id"] == first.json["id"]
    second = await server.call("POST", "/v1/batches", json=body_of(file_id), headers={"x-stainless-retry-count": "0"})
    assert second.json["id"] != first.json["id"]
    other = await server.call("POST", "/v1/batches", json=body_of(file_id, completion_window="2h"), headers=RETRY)
    assert other.json["id"] not in (first.json["id"], second.json["id"])
    someone = await server.key("submitter", principal="someone else")
    theirs = await server.call("POST", "/v1/batches", key=someone, json=body_of(file_id), headers=RETRY)
    assert theirs.json["id"] not in (first.json["id"], second.json["id"]), "another principal's request is no retry"
    assert await count(server) == 4


async def test_the_policy_is_pinned_when_the_batch_is_created(server: Any) -> None:
    by_wish = await server.new_batch(x_broker={"residency": ["eu", "CH"]})
    by_default = await server.new_batch()
    own = compile_countries(["IS"], name="iceland only")
    async with server.services.database.transaction() as session:
        project = await session.get_one(Project, "default")
        project.policy = msgspec.to_builtins(own)
    by_project = await server.new_batch()
    wanted = {by_wish["id"]: compile_countries(["eu", "CH"]), by_default["id"]: INTERNAL, by_project["id"]: own}
    async with server.services.database.transaction() as session:
        for batch_id, policy in wanted.items():
            batch = await session.get_one(Batch, batch_id)
            assert batch.policy_hash == digest(policy)
            stored = await session.get_one(Policy, batch.policy_hash)
            assert msgspec.convert(stored.body, ResidencyPolicy) == policy


async def test_windows_and_deadlines_decide_together_when_a_batch_expires(server: Any) -> None:
    short = await server.new_batch(completion_window="90m")
    assert short["expires_at"] - short["created_at"] == 5400
    soon = short["created_at"] + 3600
    both = await server.new_batch(completion_window="2d", x_broker={"deadline": soon})
    assert both["expires_at"] == both["x_broker"]["deadline"] == soon
    file_id = both["input_file_id"]
    for window in ("", "24", "h", "1w", "-1h", "٣h", "99999999999d", "0m"):
        answer = await server.call("POST", "/v1/batches", json=body_of(file_id, completion_window=window))
        assert (answer.status, answer.json["error"]["param"]) == (400, "completion_window"), window
    milliseconds = await server.call("POST", "/v1/batches", json=body_of(file_id, x_broker={"deadline": 2**62}))
    assert milliseconds.json["error"]["param"] == "x_broker.deadline"
    assert "milliseconds" in milliseconds.json["error"]["message"]


async def test_a_bad_line_fails_the_batch_with_its_number(server: Any, input_lines: Any) -> None:
    file_id = await server.upload(input_lines(2) + b"not json\n" + input_lines(1))
    batch = (await server.call("POST", "/v1/batches", json=body_of(file_id))).json
    await Validator(server.services).step()
    failed = (await server.call("GET", f"/v1/batches/{batch['id']}")).json
    assert failed["status"] == "failed"
    assert {(each["line"], each["code"]) for each in failed["errors"]["data"]} >= {(3, "invalid_json_line")}
    assert failed["errors"]["object"] == "list"
    cancelled = await server.call("POST", f"/v1/batches/{batch['id']}/cancel")
    assert (cancelled.status, cancelled.code) == (422, "invalid_state")


async def test_a_batch_without_any_offer_is_told_why(server: Any) -> None:
    waits = await server.new_batch(x_broker={"on_infeasible": "queue"})
    await Validator(server.services).step()
    explained = await server.call("GET", f"/v1/batches/{waits['id']}/explain")
    assert explained.status == 200
    assert explained.json["feasible"] is False
    placed = await server.call("GET", f"/v1/batches/{waits['id']}/placements")
    assert placed.json == {"object": "list", "data": []}


async def test_a_quote_creates_nothing(server: Any, input_lines: Any) -> None:
    file_id = await server.upload(input_lines(4))
    quoted = await server.call("POST", "/v1/quotes", json={"input_file_id": file_id, "x_broker": {"residency": ["DE"]}})
    assert quoted.status == 200, quoted.raw
    assert (quoted.json["object"], quoted.json["lines"], quoted.json["model"]) == ("quote", 4, "tiny")
    assert sum(step["count"] for step in quoted.json["funnel"]) == quoted.json["offers"]
    assert quoted.json["advice"] == ("rent" if quoted.json["feasible"] else "none")
    if quoted.json["feasible"]:
        assert quoted.json["p90"]["output_tokens"] >= quoted.json["output_tokens"]
        assert float(quoted.json["p90"]["usd"]) >= float(quoted.json["usd"])
    assert await count(server) == 0
    bad = await server.call("POST", "/v1/quotes", json={"input_file_id": await server.upload(b"nonsense\n")})
    assert (bad.status, bad.json["error"]["param"]) == (400, "input_file_id")
    for path in ("/v1/quotes", "/v1/batches"):
        body = {"input_file_id": "file-none", "endpoint": "/v1/chat/completions"}
        unknown = await server.call("POST", path, json=body)
        assert (unknown.status, unknown.json["error"]["param"]) == (404, "input_file_id"), "the field that named it"


async def test_the_list_is_narrowed_by_status_and_tags(server: Any) -> None:
    async def made(**tags: str) -> str:
        return str((await server.new_batch(x_broker={"tags": tags} if tags else None))["id"])

    async def found(query: str) -> list[str]:
        answer = await server.call("GET", f"/v1/batches?{query}")
        assert answer.status == 200, answer.raw
        return [batch["id"] for batch in answer.json["data"]]

    bare, one, two = await made(), await made(team="a", run="1"), await made(team="a", run="2.0")
    assert await found("") == [two, one, bare]
    assert await found("tag=team=a") == [two, one]
    assert await found("tag=team=a&tag=run=1") == [one]
    assert await found("tag=run=2.0&status=validating") == [two]
    assert await found("tag=team=b") == await found("tag=te.am=a") == await found("tag=$[0]=a") == []
    await server.call("POST", f"/v1/batches/{one}/cancel")
    (ended,) = {(await server.call("GET", f"/v1/batches/{one}")).json["status"]}
    assert await found(f"status={ended}") == [one]
    assert await found(f"status={ended}&status=validating&limit=2") == [two, one]
    for wrong in ("status=running", "tag=team", 'tag=te"am=a', "tag=te\\am=a"):
        assert (await server.call("GET", f"/v1/batches?{wrong}")).status == 400, wrong
