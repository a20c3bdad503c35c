"""Doing again what failed or was not done: exactly those lines, once, with everything else as it was."""

from __future__ import annotations

import json
from typing import Any

import pytest
from sqlalchemy import func, select, update

from broker.control.finalise import Finaliser
from jobs.tables import Batch
from tests.support.wire_agent import Agent

SDK_RETRY = {"x-stainless-retry-count": "1"}


async def leased(agent: Agent) -> dict[str, Any]:
    return dict((await agent.lease())["lease"])


async def retry(server: Any, batch: str, *, headers: dict[str, str] | None = None, **body: Any) -> Any:
    return await server.call("POST", f"/v1/batches/{batch}/retry", json=body, headers=headers)


async def custom_ids(server: Any, file_id: str) -> list[str]:
    answer = await server.call("GET", f"/v1/files/{file_id}/content")
    assert answer.status == 200, answer.raw
    return [json.loads(line)["custom_id"] for line in answer.raw.splitlines()]


async def change(server: Any, batch: str, **values: Any) -> None:
    async with server.services.database.transaction() as session:
        await session.execute(update(Batch).where(Batch.id == batch).values(**values))


async def batches(server: Any) -> int:
    async with server.services.database.transaction() as session:
        return int(await session.scalar(select(func.count()).select_from(Batch)) or 0)


@pytest.fixture
async def cancelled(server: Any, ready: tuple[Agent, str]) -> str:
    """Four lines: 0 completed, 1 failed, 2 and 3 cancelled."""
    agent, batch = ready
    await change(server, batch, metadata_={"run": "a"})
    await agent.work(await leased(agent), range(0, 2), failed=[1])
    assert (await server.call("POST", f"/v1/batches/{batch}/cancel")).status == 200
    server.services.database.clock_offset_us += 3600 * 1_000_000
    await Finaliser(server.services).step()
    assert (await server.call("GET", f"/v1/batches/{batch}")).json["status"] == "cancelled"
    return batch


@pytest.mark.parametrize(
    ("which", "expected", "counts"),
    [
        ("all", ["line-1", "line-2", "line-3"], (1, 2)),
        ("failed", ["line-1"], (1, 0)),
        ("undone", ["line-2", "line-3"], (0, 2)),
    ],
)
async def test_the_new_batch_is_exactly_the_lines_that_were_asked_for(
    server: Any, cancelled: str, which: str, expected: list[str], counts: tuple[int, int]
) -> None:
    made = (await retry(server, cancelled, which=which)).json
    assert await custom_ids(server, made["input_file_id"]) == expected
    assert (made["x_retry"]["failed"], made["x_retry"]["undone"], made["x_retry"]["invalid"]) == (*counts, 0)
    assert (made["status"], made["endpoint"], made["metadata"]) == ("validating", "/v1/chat/completions", {"run": "a"})
    assert (made["x_broker"]["retry_of"], made["id"] != cancelled) == (cancelled, True)
    assert server.services.wake["validate"].is_set()


async def test_the_lines_are_byte_for_byte_those_of_the_original(server: Any, cancelled: str) -> None:
    original = (await server.call("GET", f"/v1/batches/{cancelled}")).json["input_file_id"]
    lines = (await server.call("GET", f"/v1/files/{original}/content")).raw.splitlines(keepends=True)
    made = (await retry(server, cancelled)).json
    assert (await server.call("GET", f"/v1/files/{made['input_file_id']}/content")).raw == b"".join(lines[1:])


async def test_wishes_stay_but_for_those_that_are_named_and_a_deadline_that_has_passed(
    server: Any, cancelled: str
) -> None:
    wishes = {"max_usd": "3", "priority": 5, "deadline": 1, "tags": {"team": "x"}, "order": "completion"}
    await change(server, cancelled, wishes=wishes, deadline_us=1_000_000)
    made = (await retry(server, cancelled, completion_window="2h", x_broker={"priority": 7})).json
    ours = made["x_broker"]
    assert (ours["max_usd"], ours["priority"], ours["deadline"], ours["tags"]) == ("3", 7, None, {"team": "x"})
    assert (ours["order"], made["completion_window"]) == ("completion", "2h")
    assert made["expires_at"] - made["created_at"] == 7200


async def test_what_was_changed_while_the_batch_lived_stays_changed(server: Any, cancelled: str) -> None:
    deadline = (await server.call("GET", f"/v1/batches/{cancelled}")).json["cancelled_at"] + 7_200
    await change(server, cancelled, wishes={"priority": 5}, priority=9, deadline_us=deadline * 1_000_000)
    ours = (await retry(server, cancelled)).json["x_broker"]
    assert (ours["priority"], ours["deadline"]) == (9, deadline)


async def test_repeating_a_retry_makes_one_batch(server: Any, cancelled: str) -> None:
    """Duplicate batches on retry, no idempotency (ogx #3144)."""
    key = {"Idempotency-Key": "again"}
    first = (await retry(server, cancelled, headers=key)).json
    assert (await retry(server, cancelled, headers=key)).json == first
    other = await retry(server, cancelled, headers=key, which="failed")
    assert (other.status, other.code) == (422, "idempotency_mismatch")
    plain = (await retry(server, cancelled)).json
    assert (await retry(server, cancelled, headers=SDK_RETRY)).json["id"] == plain["id"]
    assert await batches(server) == 3


async def test_a_retry_needs_no_body(server: Any, cancelled: str) -> None:
    made = await server.call("POST", f"/v1/batches/{cancelled}/retry")
    assert (made.status, made.json["x_retry"]["undone"]) == (200, 2)


async def test_a_batch_that_has_not_ended_cannot_be_done_again(server: Any, ready: tuple[Agent, str]) -> None:
    answer = await retry(server, ready[1])
    assert (answer.status, answer.code) == (422, "invalid_state")
    assert "in_progress" in answer.json["error"]["message"]


async def test_nothing_to_do_again_is_said_and_nothing_is_made(server: Any, ready: tuple[Agent, str]) -> None:
    agent, batch = ready
    await agent.work(await leased(agent), range(0, 4))
    await Finaliser(server.services).step()
    answer = await retry(server, batch)
    assert (answer.status, answer.code) == (422, "nothing_to_retry")
    assert "4 of 4 are completed" in answer.json["error"]["message"]
    assert await batches(server) == 1


async def test_without_its_input_a_batch_cannot_be_done_again_and_its_results_stay(server: Any, cancelled: str) -> None:
    """Results vanish when the input file is deleted (control-layer #1741)."""
    batch = (await server.call("GET", f"/v1/batches/{cancelled}")).json
    errors = (await server.call("GET", f"/v1/files/{batch['error_file_id']}/content")).raw
    assert (await server.call("DELETE", f"/v1/files/{batch['input_file_id']}")).status == 200
    answer = await retry(server, cancelled)
    assert (answer.status, answer.code) == (422, "input_gone")
    assert batch["input_file_id"] in answer.json["error"]["message"]
    assert (await server.call("GET", f"/v1/files/{batch['error_file_id']}/content")).raw == errors
    for order in ("input", "completion"):
        path = f"/v1/batches/{cancelled}/results?kind=errors&order={order}"
        assert (await server.call("GET", path)).raw == errors
        path = f"/v1/batches/{cancelled}/results?order={order}"
        assert [json.loads(each)["custom_id"] for each in (await server.call("GET", path)).raw.splitlines()] == [
            "line-0"
        ]


async def test_a_refused_retry_leaves_no_file(server: Any, cancelled: str) -> None:
    before = [key async for key in server.services.store.keys("default/files")]
    for body in (
        {"completion_window": "1w"},
        {"x_broker": {"residency": ["Atlantis"]}},
        {"x_broker": {"project": "b"}},
    ):
        assert (await retry(server, cancelled, **body)).status == 400, body
    assert (await retry(server, cancelled, which="some")).status == 400
    assert [key async for key in server.services.store.keys("default/files")] == before
