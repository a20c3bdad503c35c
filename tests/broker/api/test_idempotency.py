"""Two retries never make two batches, also when they are under way at the same time."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx2
import openai
import pytest
from sqlalchemy import func, select

from broker.control.finalise import Finaliser
from jobs.tables import Batch


def body_of(file_id: str, **fields: Any) -> dict[str, Any]:
    return {"input_file_id": file_id, "endpoint": "/v1/chat/completions", "completion_window": "24h", **fields}


async def count(server: Any) -> int:
    async with server.services.database.transaction() as session:
        return int(await session.scalar(select(func.count()).select_from(Batch)) or 0)


@pytest.mark.parametrize(
    ("headers", "batches"),
    [
        ([{"Idempotency-Key": "order-7"}] * 20, 1),
        # an SDK whose first attempt was cut off, and is still at work when the others come
        ([{"x-stainless-retry-count": str(number % 3)} for number in range(1, 20)], 7),
        ([{"Idempotency-Key": f"order-{number % 4}", "x-stainless-retry-count": "1"} for number in range(20)], 4),
    ],
)
async def test_requests_under_way_at_once_are_told_apart_by_their_key_alone(
    server: Any, input_lines: Any, headers: list[dict[str, str]], batches: int
) -> None:
    file_id = await server.upload(input_lines(1))
    await server.call(
        "POST", "/v1/batches", json=body_of(file_id), headers={**headers[0], "x-stainless-retry-count": "0"}
    )
    answers = await asyncio.gather(
        *(server.call("POST", "/v1/batches", json=body_of(file_id), headers=each) for each in headers)
    )
    assert {answer.status for answer in answers} == {200}
    assert await count(server) == batches


class LosesAnswers(httpx2.AsyncBaseTransport):
    """A network that delivers every request and loses the first two answers of each kind."""

    def __init__(self) -> None:
        self.network = httpx2.AsyncHTTPTransport()
        self.retries: list[str] = []

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        answer = await self.network.handle_async_request(request)
        retry = request.headers["x-stainless-retry-count"]
        self.retries.append(retry)
        if retry in ("0", "1"):
            await answer.aclose()
            raise httpx2.ReadError("the answer was lost", request=request)
        return answer


async def test_the_stock_client_that_loses_the_answer_twice_still_has_one_batch(
    server: Any, input_lines: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    file_id = await server.upload(input_lines(1))
    network = LosesAnswers()
    async with httpx2.AsyncClient(transport=network) as http, server.openai(http_client=http) as client:
        monkeypatch.setattr(client, "_calculate_retry_timeout", lambda *_: 0)
        batch = await client.batches.create(**body_of(file_id))
        assert batch.status == "validating"
        assert network.retries == ["0", "1", "2"]
        assert await count(server) == 1


async def test_a_refused_conflict_is_not_sent_again(server: Any, input_lines: Any) -> None:
    file_id = await server.upload(input_lines(1))
    seen: list[str] = []

    async def note(request: httpx2.Request) -> None:
        seen.append(request.headers["x-stainless-retry-count"])

    async with (
        httpx2.AsyncClient(event_hooks={"request": [note]}) as http,
        server.openai(http_client=http, default_headers={"Idempotency-Key": "k"}) as client,
    ):
        await client.batches.create(**body_of(file_id))
        with pytest.raises(openai.UnprocessableEntityError) as conflict:
            await client.batches.create(**body_of(file_id), metadata={"other": "request"})
    assert conflict.value.code == "idempotency_mismatch"
    assert seen == ["0", "0"]


@pytest.mark.parametrize("key", ["", "x" * 256, "ключ"])
async def test_a_key_that_cannot_be_kept_is_400(server: Any, input_lines: Any, key: str) -> None:
    file_id = await server.upload(input_lines(1))
    answer = await server.call("POST", "/v1/batches", json=body_of(file_id), headers={"Idempotency-Key": key})
    assert (answer.status, answer.json["error"]["param"]) == (400, "Idempotency-Key")


async def test_a_retry_is_answered_although_its_file_is_gone(server: Any, input_lines: Any) -> None:
    batch = await server.new_batch()
    await server.call("POST", f"/v1/batches/{batch['id']}/cancel")
    await Finaliser(server.services).step()
    assert (await server.call("DELETE", f"/v1/files/{batch['input_file_id']}")).status == 200
    again = await server.call(
        "POST", "/v1/batches", json=body_of(batch["input_file_id"]), headers={"x-stainless-retry-count": "2"}
    )
    assert (again.status, again.json["id"]) == (200, batch["id"])
