"""Both exchanges against a server that speaks raw bytes: whatever it does, they must see the same."""

from __future__ import annotations

import asyncio
import socket
import struct
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import aiohttp
import pytest

from workers.agent.exchange import Answer, Exchange, Outcome, SessionExchange
from workers.agent.lean import LeanExchange, exchange_for
from workers.agent.spec import EngineSpec

Reply = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"


class RawServer:
    """Reads a request with a body, then lets `reply` write. `requests` holds what came; `connections` counts."""

    def __init__(self, reply: Reply) -> None:
        self.reply = reply
        self.requests: list[bytes] = []
        self.connections = 0
        self.url = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        while head := await reader.readuntil(b"\r\n\r\n"):
            length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
            self.requests.append(head + await reader.readexactly(length))
            await self.reply(reader, writer)

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await self.serve(reader, writer)
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()


def says(*pieces: bytes, then: str = "stay") -> Reply:
    """Write the pieces, each in a segment of its own, then stay, close, reset, or be silent."""

    async def reply(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0)
        if then == "reset":
            linger = struct.pack("ii", 1, 0)
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            writer.transport.abort()
        if then in ("close", "reset"):
            raise OSError("over")

    return reply


@pytest.fixture(params=["lean", "aiohttp"])
async def make(request: pytest.FixtureRequest) -> AsyncIterator[Callable[..., Exchange]]:
    session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))

    def make_exchange(timeout_s: float = 20.0, headers: dict[str, str] | None = None) -> Exchange:
        if request.param == "aiohttp":
            return SessionExchange(session, headers or {}, timeout_s)
        import httptools  # noqa: PLC0415 - as the agent does: where it is there

        return LeanExchange(httptools, headers or {}, timeout_s)

    yield make_exchange
    await session.close()


@pytest.fixture
async def start(request: pytest.FixtureRequest) -> AsyncIterator[Callable[[Reply], Awaitable[RawServer]]]:
    servers: list[asyncio.Server] = []

    async def start_server(reply: Reply) -> RawServer:
        raw = RawServer(reply)
        server = await asyncio.start_server(raw.connected, "127.0.0.1", 0)
        servers.append(server)
        raw.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1/completions"
        return raw

    yield start_server
    for server in servers:
        server.close()


async def ask(exchange: Exchange, url: str, body: bytes = b'{"prompt": "x"}') -> Outcome:
    """One request; what it came to."""
    ended: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
    exchange.post(url, body, ended.set_result)
    return await ended


def kind(outcome: Outcome) -> Any:
    return outcome if isinstance(outcome, Answer) else getattr(outcome, "kind", outcome)


def ok(status: int = 200, body: bytes = b"{}", request_id: str | None = None, after: str | None = None) -> Answer:
    return Answer(status, body, request_id, after)


HEAD = b"HTTP/1.1 200 OK\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        pytest.param(says(OK), ok(), id="whole"),
        pytest.param(says(*(OK[at : at + 1] for at in range(len(OK)))), ok(), id="byte by byte"),
        pytest.param(says(CHUNKED + b"1\r\n{\r\n", b"1\r\n}\r\n0\r\n\r\n"), ok(), id="chunked"),
        pytest.param(says(b"HTTP/1.1 100 Continue\r\n\r\n" + OK), ok(), id="an interim answer first"),
        pytest.param(says(b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n", OK), ok(), id="early hints"),
        pytest.param(says(HEAD + b"\r\n{}", then="close"), ok(), id="its end is the end of the connection"),
        pytest.param(says(b"HTTP/1.0 200 OK\r\n\r\n{}", then="close"), ok(), id="HTTP/1.0"),
        pytest.param(says(OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"), then="close"), ok(), id="closes"),
        pytest.param(says(HEAD + b"Content-Length: 0\r\n\r\n"), ok(body=b""), id="empty"),
        pytest.param(says(b"HTTP/1.1 204 No Content\r\n\r\n"), ok(204, b""), id="no content"),
        pytest.param(
            says(b"HTTP/1.1 503 Busy\r\nRetry-After: 7\r\nX-Request-Id: r-1\r\nContent-Length: 0\r\n\r\n"),
            ok(503, b"", "r-1", "7"),
            id="busy",
        ),
        pytest.param(
            says(b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n"),
            ok(302, b""),
            id="a redirect is not followed",
        ),
        pytest.param(says(HEAD + b"Content-Length: 9\r\n\r\n{}", then="close"), "broken", id="truncated"),
        pytest.param(says(CHUNKED + b"5\r\n{", then="close"), "broken", id="truncated chunk"),
        pytest.param(says(CHUNKED + b"1\r\n{\r\n", then="close"), "broken", id="no last chunk"),
        pytest.param(says(HEAD + b"Content-Le", then="close"), "broken", id="truncated headers"),
        pytest.param(says(then="close"), "broken", id="closed without a word"),
        pytest.param(says(then="reset"), "broken", id="reset"),
        pytest.param(says(HEAD + b"Content-Length: 9\r\n\r\n{}", then="reset"), "broken", id="reset midway"),
        pytest.param(says(b"SSH-2.0-OpenSSH_9.9\r\n"), "broken", id="another protocol"),
        pytest.param(says(HEAD + b"X: " + b"x" * 1_000_000 + b"\r\n\r\n"), "broken", id="a huge header"),
        pytest.param(says(HEAD + b"Content-Length: nine\r\n\r\n{}"), "broken", id="no length"),
        pytest.param(says(HEAD + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}"), "broken", id="two lengths"),
        pytest.param(says(CHUNKED + b"zz\r\n{}\r\n0\r\n\r\n"), "broken", id="a chunk of no length"),
        pytest.param(says(OK + b"and more"), "broken", id="bytes that belong to nothing"),
    ],
)
async def test_both_see_the_same(make: Any, start: Any, reply: Reply, expected: object) -> None:
    server = await start(reply)
    assert kind(await ask(make(), server.url)) == expected


async def test_silence_is_overdue_and_its_connection_is_not_used_again(make: Any, start: Any) -> None:
    server = await start(says())
    exchange = make(timeout_s=0.05)
    assert kind(await ask(exchange, server.url)) == "overdue"
    server.reply = says(OK)
    assert kind(await ask(exchange, server.url)) in (ok(), "overdue")
    assert server.connections == 2


async def test_where_nobody_listens_nothing_was_sent(make: Any) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and no listen()
        assert kind(await ask(make(), f"http://127.0.0.1:{taken.getsockname()[1]}/v1/completions")) == "unconnected"


async def test_the_request_is_the_bytes_of_the_line_with_the_engines_headers(make: Any, start: Any) -> None:
    server = await start(says(OK))
    body = '{"prompt": "größer", "n": 1.50}'.encode() * 20_000
    assert await ask(make(headers={"Authorization": "Bearer k"}), server.url + "?a=%20b", body) == ok()
    head, _, sent = server.requests[0].partition(b"\r\n\r\n")
    fields = head.lower().split(b"\r\n")
    assert sent == body
    assert fields[0] == b"post /v1/completions?a=%20b http/1.1"
    assert b"authorization: bearer k" in fields
    assert b"content-type: application/json" in fields
    assert b"host: " + server.url.split("/")[2].encode() in fields


async def test_one_connection_serves_one_request_after_the_other(make: Any, start: Any) -> None:
    server = await start(says(OK))
    exchange = make()
    assert [await ask(exchange, server.url) for _ in range(5)] == [ok()] * 5
    assert server.connections == 1


async def test_requests_at_the_same_time_never_share_a_connection(make: Any, start: Any) -> None:
    async def echo(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        body = server.requests[-1].partition(b"\r\n\r\n")[2]
        await asyncio.sleep(0.001 * (body[0] % 7))
        writer.write(HEAD + b"Content-Length: %d\r\n\r\n%b" % (len(body), body))

    server = await start(echo)
    exchange = make()
    bodies = [str(n).encode() for n in range(60)]
    answers = await asyncio.gather(*(ask(exchange, server.url, body) for body in bodies))
    assert answers == [ok(body=body) for body in bodies]


async def test_an_answer_that_nobody_asked_for_is_nobodys(make: Any, start: Any) -> None:
    """A second answer may belong to another's request: it must not become the answer to the next one."""
    server = await start(says(OK, HEAD + b'Content-Length: 12\r\n\r\n{"stray": 1}'))
    exchange = make()
    assert kind(await ask(exchange, server.url)) in (ok(), "broken")
    for _ in range(5):
        await asyncio.sleep(0)
    server.reply = says(OK)
    assert kind(await ask(exchange, server.url)) in (ok(), "broken")


async def test_a_cancelled_request_gets_no_verdict_and_its_connection_is_closed(make: Any, start: Any) -> None:
    gone = asyncio.Event()

    async def wait_for_the_end(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        arrived.set()
        assert await reader.read() == b""
        gone.set()

    arrived = asyncio.Event()
    server = await start(wait_for_the_end)
    ended: list[Outcome] = []
    pending = make().post(server.url, b"{}", ended.append)
    await arrived.wait()
    pending.cancel()
    await gone.wait()
    assert ended == []


async def test_a_connection_that_the_engine_closed_while_idle_costs_no_line(make: Any, start: Any) -> None:
    server = await start(says(OK, then="close"))
    exchange = make()
    for _ in range(3):
        assert await ask(exchange, server.url) == ok()
        await asyncio.sleep(0.01)  # the end of the connection arrives
    assert server.connections == 3


def spec(base_url: str | None) -> EngineSpec:
    fields: dict[str, Any] = dict.fromkeys(EngineSpec.__dataclass_fields__)
    return EngineSpec(
        **fields | {"base_url": base_url, "headers": {}, "request_timeout_s": 1.0, "concurrency_start": 1, "phases": {}}
    )


@pytest.mark.parametrize(
    ("base_url", "expected"),
    [
        (None, LeanExchange),  # a child of the agent: always on loopback
        ("http://127.0.0.1:8000", LeanExchange),
        ("http://[::1]:8000", LeanExchange),
        ("https://127.0.0.1:8443", SessionExchange),
        ("http://engine.example:8000", SessionExchange),
        ("http://me:word@localhost:8000", SessionExchange),  # credentials in a URL are aiohttp's to send
    ],
)
async def test_only_engines_on_loopback_get_the_lean_one(base_url: str | None, expected: type) -> None:
    async with aiohttp.ClientSession() as session:
        assert type(exchange_for(spec(base_url), session)) is expected


async def test_without_httptools_aiohttp_does_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "httptools", None)
    async with aiohttp.ClientSession() as session:
        assert type(exchange_for(spec(None), session)) is SessionExchange


async def test_a_header_cannot_smuggle_another(start: Any) -> None:
    import httptools  # noqa: PLC0415

    server = await start(says(OK))
    with pytest.raises(ValueError, match="line break"):
        await ask(LeanExchange(httptools, {"X": "a\r\nHost: b"}, 1.0), server.url)
    assert server.requests == []
