"""Lines that were refused at intake: told apart from failed ones, in every listing, file and repetition."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from broker.control.finalise import Finaliser
from broker.control.validate import Validator
from jobs.clock import db_now
from markets import price_book
from tests.support.line_worker import LineWorker
from tests.support.wire_agent import offer


def good(n: int) -> bytes:
    body = {"model": "tiny", "messages": [{"role": "user", "content": f"question {n}"}], "max_tokens": 8}
    request = {"custom_id": f"line-{n}", "method": "POST", "url": "/v1/chat/completions", "body": body}
    return json.dumps(request).encode()


# no JSON; bad UTF-8; blank; a name that can be read in a line that cannot be run; no newline at the end
BAD = {1: b"not json", 2: b'{"custom_id": "\xff"}', 4: b"", 5: b'{"custom_id": "line-5", "method": "PUT"}'}
CONTENT = b"\n".join(BAD.get(n) if n in BAD else good(n) for n in range(7))


@pytest.fixture
async def ended(server: Any) -> AsyncIterator[str]:
    """Lines 0 and 3 completed, 6 failed, the others invalid."""
    async with server.services.database.transaction() as session:
        await price_book.store_offers(session, "sandbox", [offer()], now_us=await db_now(session))
    file_id = await server.upload(CONTENT)
    body = {"input_file_id": file_id, "endpoint": "/v1/chat/completions", "x_broker": {"skip_invalid": True}}
    batch = (await server.call("POST", "/v1/batches", json=body)).json["id"]
    await Validator(server.services).step()
    assert await LineWorker(server.services).work(batch, failed=[6]) == [0, 3, 6]
    await Finaliser(server.services).step()
    yield batch


async def lines(server: Any, batch: str, query: str) -> list[tuple[int, str | None, str]]:
    answer = await server.call("GET", f"/v1/batches/{batch}/lines{query}")
    return [(line["line"], line["custom_id"], line["error"]["code"]) for line in answer.json["data"]]


async def test_invalid_and_failed_lines_are_listed_apart(server: Any, ended: str) -> None:
    assert await lines(server, ended, "?status=failed") == [(7, "line-6", "engine_error")]
    invalid = await lines(server, ended, "?status=invalid")
    assert [(number, custom_id) for number, custom_id, _ in invalid] == [(2, None), (3, None), (5, None), (6, "line-5")]


@pytest.mark.parametrize("order", ["input", "completion"])
async def test_the_error_file_has_every_invalid_line_once_in_either_order(server: Any, ended: str, order: str) -> None:
    answer = await server.call("GET", f"/v1/batches/{ended}/results?kind=errors&order={order}")
    errors = [json.loads(line) for line in answer.raw.splitlines()]
    assert sorted(line["error"].get("line", 7) for line in errors) == [2, 3, 5, 6, 7]
    assert {line["custom_id"] for line in errors} == {None, "line-5", "line-6"}


async def test_a_retry_leaves_invalid_lines_out_and_says_so(server: Any, ended: str) -> None:
    made = (await server.call("POST", f"/v1/batches/{ended}/retry")).json
    assert made["x_retry"] == {"failed": 1, "undone": 0, "invalid": 0, "invalid_left_out": 4}
    assert (await server.call("GET", f"/v1/files/{made['input_file_id']}/content")).raw == good(6) + b"\n"


async def test_a_retry_takes_invalid_lines_when_asked(server: Any, ended: str) -> None:
    made = (await server.call("POST", f"/v1/batches/{ended}/retry", json={"invalid": True})).json
    assert (made["x_retry"]["invalid"], made["x_retry"]["invalid_left_out"]) == (4, 0)
    expected = b"".join(line + b"\n" for line in (BAD[1], BAD[2], BAD[4], BAD[5], good(6)))
    assert (await server.call("GET", f"/v1/files/{made['input_file_id']}/content")).raw == expected


async def test_every_line_with_a_custom_id_is_found_also_those_that_repeat_it(server: Any, ended: str) -> None:
    """The input is read to its end, and a line whose name is all that can be read of it has that name."""
    file_id = await server.upload(b"\n".join([good(0), good(1), good(0), good(2), good(0)]))
    body = {"input_file_id": file_id, "endpoint": "/v1/chat/completions", "x_broker": {"skip_invalid": True}}
    batch = (await server.call("POST", "/v1/batches", json=body)).json["id"]
    await Validator(server.services).step()
    found = (await server.call("GET", f"/v1/batches/{batch}/lines?custom_id=line-0")).json
    assert [(line["line"], line["status"]) for line in found["data"]] == [
        (1, "pending"),
        (3, "invalid"),
        (5, "invalid"),
    ]
    page = (await server.call("GET", f"/v1/batches/{batch}/lines?custom_id=line-0&limit=1&after=1")).json
    assert ([line["line"] for line in page["data"]], page["last_line"], page["has_more"]) == ([3], 3, True)
    assert await lines(server, ended, "?custom_id=line-5") == [(6, "line-5", "invalid_method")]
