"""Uploads as the stock clients send them, and as nobody should."""

from __future__ import annotations

import asyncio
import gzip
import io
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.support.object_stores import keys_of

BOUNDARY = "----broker-test"
MULTIPART = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}


def part(name: str, content: bytes, *extra: str) -> bytes:
    disposition = f'Content-Disposition: form-data; name="{name}"' + ('; filename="a.jsonl"' if name == "file" else "")
    head = "\r\n".join([f"--{BOUNDARY}", disposition, *extra])
    return head.encode() + b"\r\n\r\n" + content + b"\r\n"


def form(*parts: bytes) -> bytes:
    return b"".join(parts) + f"--{BOUNDARY}--\r\n".encode()


async def chunked(content: bytes, size: int = 1000) -> AsyncIterator[bytes]:
    for start in range(0, len(content), size):
        yield content[start : start + size]


async def test_the_file_may_come_before_its_purpose_and_without_a_length(server: Any, input_lines: Any) -> None:
    """As the Node client sends it: file first, then purpose, chunked."""
    content = input_lines(100)
    answer = await server.call(
        "POST", "/v1/files", data=chunked(form(part("file", content), part("purpose", b"batch"))), headers=MULTIPART
    )
    assert answer.status == 200, answer.raw
    read = await server.call("GET", f"/v1/files/{answer.json['id']}/content")
    assert read.raw == content


@pytest.mark.parametrize(
    "name",
    ["../../etc/passwd", "a/b\\c.jsonl", "x%0d%0aSet-Cookie: a=b", "", "ä€😀.jsonl", "q\"uo'te;.jsonl", "." * 400],
)
async def test_a_file_name_is_only_ever_shown(server: Any, input_lines: Any, name: str) -> None:
    file_id = await server.upload(input_lines(1), filename=name or "upload")
    shown = (await server.call("GET", f"/v1/files/{file_id}")).json["filename"]
    assert "/" not in shown
    assert "\\" not in shown
    assert shown.isprintable()
    assert len(shown) <= 255
    content = await server.call("GET", f"/v1/files/{file_id}/content")
    assert content.headers["Content-Disposition"].startswith("attachment; filename*=UTF-8''")
    assert await keys_of(server.services.store) == {f"default/files/{file_id}"}


@pytest.mark.filterwarnings("ignore::aiohttp.BadContentDispositionHeader")  # aiohttp warns of what we then refuse
@pytest.mark.parametrize(
    ("body", "param"),
    [
        (form(part("purpose", b"batch")), "file"),
        (form(part("file", b"x")), "purpose"),
        (form(part("file", b"x"), part("purpose", b"assistants")), "purpose"),
        (form(part("file", b"x"), part("file", b"y"), part("purpose", b"batch")), "file"),
        (form(part("purpose", b"batch" * 5000), part("file", b"x")), "purpose"),
        (
            form(part("purpose", b"batch"), part("expires_after[anchor]", b"now"), part("file", b"x")),
            "expires_after[anchor]",
        ),
        (form(*[part(f"f{number}", b"") for number in range(40)]), None),
        (part("purpose", b"batch") + part("file", b"x")[:-10], None),  # the body ends inside a part's headers
        (
            part("purpose", b"batch") + part("file", b"x" * 5000)[:-20],
            None,
        ),  # … inside the file: half a file is no file
        (part("purpose", b"batch") + part("file", b"x" * 5000), None),  # … before the closing boundary
        (b"no boundary at all", None),
        (b"", None),
    ],
)
async def test_a_bad_form_is_400_and_leaves_nothing_behind(server: Any, body: bytes, param: str | None) -> None:
    answer = await server.call("POST", "/v1/files", data=body, headers=MULTIPART)
    assert answer.status == 400, answer.raw
    if param is not None and answer.code != "invalid_multipart":
        assert answer.json["error"]["param"] == param
    assert await keys_of(server.services.store) == set()
    assert (await server.call("GET", "/v1/files")).json["data"] == []


@pytest.mark.parametrize("has_length", [True, False])
async def test_a_file_beyond_the_limit_is_413_and_leaves_nothing_behind(server: Any, has_length: bool) -> None:
    limit = server.services.settings.jobs.max_file_bytes
    body = form(part("purpose", b"batch"), part("file", b"x" * (limit + 1)))
    data = io.BytesIO(body) if has_length else chunked(body, 64 * 1024)
    answer = await server.call("POST", "/v1/files", data=data, headers=MULTIPART)
    assert (answer.status, answer.code) == (413, "file_too_large")
    assert str(limit) in answer.json["error"]["message"]
    assert await keys_of(server.services.store) == set()


async def test_exactly_the_limit_is_taken(server: Any) -> None:
    limit = server.services.settings.jobs.max_file_bytes
    body = form(part("purpose", b"batch"), part("file", b"x" * limit))
    answer = await server.call("POST", "/v1/files", data=io.BytesIO(body), headers=MULTIPART)
    assert (answer.status, answer.json["bytes"]) == (200, limit)


async def test_compressed_bodies_and_parts_are_415(server: Any, input_lines: Any) -> None:
    """A 292 kB body would become 300 MB; limits hold on what we read."""
    plain = form(part("purpose", b"batch"), part("file", input_lines(1)))
    whole = await server.call(
        "POST", "/v1/files", data=gzip.compress(plain), headers={**MULTIPART, "Content-Encoding": "gzip"}
    )
    assert (whole.status, whole.code) == (415, "unsupported_encoding")
    inner = form(part("purpose", b"batch"), part("file", gzip.compress(b"x"), "Content-Encoding: gzip"))
    assert (await server.call("POST", "/v1/files", data=inner, headers=MULTIPART)).status == 415
    assert await keys_of(server.services.store) == set()


async def test_a_client_that_hangs_up_leaves_nothing_behind(server: Any) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    _, writer = await asyncio.open_connection(host, int(port))
    head = f"POST /v1/files HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {server.admin_key}\r\n"
    head += f"Content-Type: {MULTIPART['Content-Type']}\r\nContent-Length: 100000\r\n\r\n"
    writer.write(head.encode() + part("purpose", b"batch") + part("file", b"x" * 1000)[:-2])
    await writer.drain()
    writer.transport.abort()
    # The server is still well, and nothing was recorded.
    assert (await server.call("GET", "/v1/files")).json["data"] == []
    assert await keys_of(server.services.store) == set(), "half a file is not in the store under its name"


@pytest.mark.parametrize(
    ("header", "status", "wanted"),
    [
        ("bytes=0-3", 206, b"0123"),
        ("bytes=6-", 206, b"6789"),
        ("bytes=-4", 206, b"6789"),
        ("bytes=8-100", 206, b"89"),
        ("bytes=0-0", 206, b"0"),
        ("bytes=10-", 416, None),
        ("bytes=5-2", 416, None),
        ("bytes=-0", 416, None),
        ("bytes=0-1,3-4", 200, b"0123456789"),  # several ranges: the whole, as RFC 9110 allows
        ("lines=1-2", 200, b"0123456789"),
        ("bytes=-", 200, b"0123456789"),
    ],
)
async def test_ranges_of_a_file(server: Any, header: str, status: int, wanted: bytes | None) -> None:
    file_id = await server.upload(b"0123456789")
    answer = await server.call("GET", f"/v1/files/{file_id}/content", headers={"Range": header})
    assert answer.status == status
    if status == 416:
        assert answer.headers["Content-Range"] == "bytes */10"
        return
    assert answer.raw == wanted
    if status == 206:
        start = b"0123456789".index(answer.raw)
        assert answer.headers["Content-Range"] == f"bytes {start}-{start + len(answer.raw) - 1}/10"


async def test_a_file_that_the_reader_has_is_not_sent_again(server: Any) -> None:
    file_id = await server.upload(b"0123456789")
    first = await server.call("GET", f"/v1/files/{file_id}/content")
    again = await server.call("GET", f"/v1/files/{file_id}/content", headers={"If-None-Match": first.headers["ETag"]})
    assert (again.status, again.raw) == (304, b"")


async def test_deleting_removes_the_bytes(server: Any, input_lines: Any) -> None:
    file_id = await server.upload(input_lines(1))
    assert (await server.call("DELETE", f"/v1/files/{file_id}")).json == {
        "id": file_id,
        "object": "file",
        "deleted": True,
    }
    assert await keys_of(server.services.store) == set()
    assert (await server.call("GET", f"/v1/files/{file_id}/content")).status == 404


async def test_an_empty_file_is_a_file(server: Any) -> None:
    file_id = await server.upload(b"")
    answer = await server.call("GET", f"/v1/files/{file_id}/content")
    assert (answer.status, answer.raw) == (200, b"")
