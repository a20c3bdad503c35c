"""What is malformed is 4xx with a name, never 5xx."""

from __future__ import annotations

import io
from typing import Any

import pytest

JSON = {"Content-Type": "application/json"}


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (b"", "invalid_json"),
        (b"{", "invalid_json"),
        (b"\xff\xfe", "invalid_json"),
        (b'{"input_file_id": "\\ud800"}', "invalid_json"),  # half a surrogate pair
        (b"[" * 5000, "invalid_json"),  # nesting
        (b'{"a": NaN}', "invalid_json"),
        (b"[]", "invalid_value"),
        (b"null", "invalid_value"),
        (b"{}", "missing_required_parameter"),
        (b'{"input_file_id": 1, "endpoint": "/v1/chat/completions"}', "invalid_value"),
        (b'{"input_file_id": "f\\u0000", "endpoint": "x"}', "invalid_value"),  # PostgreSQL has no NUL in text
        (b'{"input_file_id": "f", "endpoint": "x", "x_broker": {"deadline": 99999999999999999999}}', "invalid_value"),
        (b'{"input_file_id": "f", "endpoint": "x", "x_broker": {"deadline": 1e999}}', "invalid_value"),
        (b'{"input_file_id": "f", "endpoint": "x", "x_broker": {"wish": 1}}', "unknown_parameter"),
    ],
)
async def test_a_malformed_body_is_400(server: Any, raw: bytes, code: str) -> None:
    answer = await server.call("POST", "/v1/batches", data=raw, headers=JSON)
    assert (answer.status, answer.code) == (400, code), answer.raw


async def test_a_wrong_parameter_is_named(server: Any) -> None:
    body = {"input_file_id": "f", "endpoint": "x", "x_broker": {"priority": 1000}}
    error = (await server.call("POST", "/v1/batches", json=body)).json["error"]
    assert error["param"] == "x_broker.priority"
    assert "1000" in error["message"]


async def test_other_media_types_and_encodings_are_415(server: Any) -> None:
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"):
        assert (await server.call("POST", "/v1/batches", data=b"{}", headers={"Content-Type": kind})).status == 415
    assert (await server.call("POST", "/v1/files", data=b"{}", headers=JSON)).status == 415
    encoded = await server.call("POST", "/v1/batches", data=b"{}", headers={**JSON, "Content-Encoding": "gzip"})
    assert (encoded.status, encoded.code) == (415, "unsupported_encoding")


async def test_a_body_beyond_the_limit_is_413(server: Any) -> None:
    raw = io.BytesIO(b'{"input_file_id": "' + b"x" * 9_000_000 + b'"}')
    answer = await server.call("POST", "/v1/batches", data=raw, headers=JSON)
    assert (answer.status, answer.code) == (413, "request_too_large")


async def test_other_methods_are_405_with_allow(server: Any) -> None:
    for path, allowed in (
        ("/v1/batches", {"GET", "POST"}),
        ("/v1/files/x/content", {"GET", "HEAD"}),
        ("/worker/v1/hello", {"POST"}),
    ):
        answer = await server.call("PATCH", path)
        assert answer.status == 405
        assert set(answer.headers["Allow"].split(",")) == allowed
        assert answer.code == "method_not_allowed"


@pytest.mark.parametrize(
    "path",
    [
        "/v1/batches/../secret",
        "/v1/batches/a%2Fb",
        "/v1/batches/%00",
        "/v1/batches/a b",
        "/v1/files/%ff/content",
        "/v1/batches/" + "x" * 65,
        "/v1/models/%ed%a0%80",
        "/v1/",
        "//v1/batches",
    ],
)
async def test_a_path_that_is_no_id_is_404(server: Any, path: str) -> None:
    answer = await server.call("GET", path)
    assert answer.status == 404, answer.raw
    assert answer.json["error"]["type"] == "not_found_error"


@pytest.mark.parametrize(
    ("path", "param"),
    [
        ("/v1/batches?limit=0", "limit"),
        ("/v1/batches?limit=101", "limit"),
        ("/v1/batches?limit=x", "limit"),
        ("/v1/batches?limit=1&limit=2", "limit"),
        ("/v1/batches?after=" + "x" * 65, "after"),
        ("/v1/batches?after=%00", "after"),
        ("/v1/files?limit=10001", "limit"),
        ("/v1/files?order=newest", "order"),
        ("/v1/market/offers?country=Germany", "country"),
        ("/v1/market/offers?colour=red", "colour"),
        ("/v1/ledger/entries?after=-1", "after"),
        ("/v1/ledger/entries?after=99999999999999999999999", "after"),
        ("/v1/ledger/entries?batch=%27%20or%201", "batch"),
    ],
)
async def test_a_wrong_query_parameter_is_400_and_named(server: Any, path: str, param: str) -> None:
    answer = await server.call("GET", path)
    assert answer.status == 400, answer.raw
    assert answer.json["error"]["param"] == param


async def test_openai_routes_ignore_parameters_that_they_do_not_know(server: Any) -> None:
    assert (await server.call("GET", "/v1/batches?something=new")).status == 200
    batch = await server.new_batch(something_new={"a": 1})
    assert batch["status"] == "validating"
