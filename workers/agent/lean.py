"""Requests to an engine on this machine at a fraction of aiohttp's cost: one write, httptools' parser, no task.

What general clients spend their time on (URLs, redirects, cookies, TLS, compression, middleware) has no use on loopback
between two programs of one worker. httptools comes with uvicorn and so with the engines' images; without it, and for
any other URL, aiohttp does the same (exchange.py). Benchmarks: `python -m benchmarks.worker driver`.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import time
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any, cast

import aiohttp
from yarl import URL

from workers.agent.exchange import Answer, Exchange, NoAnswer, Outcome, SessionExchange
from workers.agent.spec import EngineSpec

# Below the 5 s after which common servers close an idle connection: a request must not meet a socket that just closed.
IDLE_CONNECTION_S = 2.0
_CONNECT_S = 10.0
# Of status line and headers; an engine that needs more is not one.
_LONGEST_HEAD = 64 * 1024
# Between two looks for overdue requests: a timeout may come so much late.
_COARSE_S = 0.1
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


def exchange_for(spec: EngineSpec, session: aiohttp.ClientSession) -> Exchange:
    """The leanest way to this engine: aiohttp's session unless it is on loopback and httptools is here."""
    base = URL(spec.base_url) if spec.base_url else None
    is_on_loopback = base is None or (base.scheme == "http" and base.host in _LOOPBACK and base.user is None)
    if is_on_loopback and importlib.util.find_spec("httptools") is not None:
        return LeanExchange(importlib.import_module("httptools"), spec.headers, spec.request_timeout_s)
    return SessionExchange(session, spec.headers, spec.request_timeout_s)


class LeanExchange:
    """Keeps connections alive and gives each one request at a time. Needs a running loop."""

    def __init__(self, httptools: ModuleType, headers: Mapping[str, str], timeout_s: float) -> None:
        self.httptools: Any = httptools
        self.timeout_s = timeout_s
        self.idle: list[_Connection] = []
        self.waiting: set[_Connection] = set()
        self.loop = asyncio.get_running_loop()
        self._headers = headers
        self._heads: dict[str, bytes] = {}
        self._origin: URL | None = None
        self._timer: asyncio.TimerHandle | None = None

    def post(self, url: str, body: bytes, on_end: Callable[[Outcome], None]) -> _Connection:
        """See Exchange. The idle connection used last is the warmest; one idle for too long may be closing."""
        head = self._heads.get(url) or self._head(url)
        content = b"%b%d\r\n\r\n%b" % (head, len(body), body)
        while self.idle:
            connection = self.idle.pop()
            if time.monotonic() - connection.idle_since < IDLE_CONNECTION_S and connection.is_open:
                connection.send(content, on_end)
                return connection
            connection.cancel()
        connection = _Connection(self)
        connection.connect(URL(url), content, on_end)
        return connection

    def watch(self, connection: _Connection) -> None:
        """Its request is due in `timeout_s`. One timer for all: a timer for each would cost as much as parsing."""
        connection.deadline = self.loop.time() + self.timeout_s
        self.waiting.add(connection)
        if self._timer is None:
            self._timer = self.loop.call_at(connection.deadline, self._look)

    def _look(self) -> None:
        """End what is overdue, and come back for the next."""
        now = self.loop.time()
        for connection in [each for each in self.waiting if each.deadline <= now]:
            connection.overdue()
        first = min((each.deadline for each in self.waiting), default=None)
        self._timer = None if first is None else self.loop.call_at(max(first, now + _COARSE_S), self._look)

    def close(self) -> None:
        """See Exchange."""
        while self.idle:
            self.idle.pop().cancel()

    def _head(self, url: str) -> bytes:
        """Everything before the length and the body. A new origin is a new engine (it restarted): old connections go."""
        target = URL(url)
        if target.origin() != self._origin:
            self._origin = target.origin()
            self._heads.clear()
            self.close()
        fields = {
            "Host": target.authority,
            "Accept": "*/*",
            "Accept-Encoding": "identity",
            "Content-Type": "application/json",
            **self._headers,
        }
        if any("\r" in field or "\n" in field for pair in fields.items() for field in pair):
            raise ValueError(f"a header of the engine holds a line break: {sorted(self._headers)}")
        rows = [f"POST {target.raw_path_qs} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items())]
        self._heads[url] = "\r\n".join([*rows, "Content-Length: "]).encode()
        return self._heads[url]


class _Connection(asyncio.Protocol):
    """One socket to the engine, and the request that is on it."""

    def __init__(self, home: LeanExchange) -> None:
        self.idle_since = 0.0
        self._home = home
        self._parser = home.httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._on_end: Callable[[Outcome], None] | None = None
        self.deadline = 0.0
        self._unsent = b""
        self._body: list[bytes] = []
        self._request_id: str | None = None
        self._retry_after: str | None = None
        self._begin()

    @property
    def is_open(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    def connect(self, url: URL, content: bytes, on_end: Callable[[Outcome], None]) -> None:
        """Connect, and send as soon as that is possible."""
        self._on_end = on_end
        self._unsent = content
        self._connecting = self._home.loop.create_task(self._connect(url))

    def send(self, content: bytes, on_end: Callable[[Outcome], None]) -> None:
        """Send a request; there must be none on this connection."""
        assert self._transport is not None
        self._on_end = on_end
        self._home.watch(self)
        self._transport.write(content)

    def cancel(self) -> None:
        """See Pending; also the end of an idle connection."""
        self._on_end = None
        self._home.waiting.discard(self)
        if self._connecting is not None:
            self._connecting.cancel()
        if self._transport is not None:
            self._transport.abort()

    async def _connect(self, url: URL) -> None:
        host, port = url.host or "", url.port or 80
        try:
            async with asyncio.timeout(_CONNECT_S):
                await self._home.loop.create_connection(lambda: self, host, port)
        except (OSError, TimeoutError) as error:
            self._end(NoAnswer("unconnected", f"{host}:{port}: {type(error).__name__}: {error}"))
        finally:
            self._connecting = None

    # --- what the transport calls -------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.Protocol."""
        self._transport = cast(asyncio.Transport, transport)
        if self._on_end is None:
            self.cancel()
        else:
            self.send(self._unsent, self._on_end)
            self._unsent = b""

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol. Bytes that nobody asked for end the connection: what follows them is not to be trusted."""
        if self._on_end is None:
            self.cancel()
            return
        self._received += len(data)
        try:
            self._parser.feed_data(data)
        except (self._home.httptools.HttpParserError, self._home.httptools.HttpParserUpgrade) as error:
            self._break(f"not an HTTP answer: {type(error).__name__}: {error}")
            return
        if not self._has_head and self._received > _LONGEST_HEAD:
            self._break(f"the answer's headers are longer than {_LONGEST_HEAD} bytes")
        elif self._is_whole:
            self._complete()

    def connection_lost(self, error: Exception | None) -> None:
        """See asyncio.Protocol. Where neither a length nor chunks say how long an answer is, its end is the end."""
        self._transport = None
        if self._on_end is not None and error is None and self._has_head and not self._is_framed:
            self._end(self._answer())
        elif self._on_end is not None:
            cause = f"{type(error).__name__}: {error}" if error else "the engine closed it before the whole answer"
            self._end(NoAnswer("broken", cause))
        elif self in self._home.idle:
            self._home.idle.remove(self)

    # --- what the parser calls ----------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        if self._is_whole:
            self._is_followed = True

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        if name in (b"content-length", b"transfer-encoding"):
            self._is_framed = True
        elif name == b"x-request-id":
            self._request_id = value.decode("latin-1")
        elif name == b"retry-after":
            self._retry_after = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        self._status = self._parser.get_status_code()
        self._has_head = self._status >= 200

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        if self._has_head:  # else an interim answer (1xx): the real one follows
            self._is_whole = True
            self._may_stay = self._parser.should_keep_alive()

    # --- ends ---------------------------------------------------------------------------------------------------------

    def _complete(self) -> None:
        transport = self._transport
        if self._is_followed:
            self._break("more bytes than one answer")
            return
        answer, may_stay = self._answer(), self._may_stay
        self._begin()
        if transport is not None and may_stay and not transport.is_closing() and not transport.get_write_buffer_size():
            self.idle_since = time.monotonic()
            self._home.idle.append(self)
        elif transport is not None:
            transport.close()
        self._end(answer)

    def _answer(self) -> Answer:
        return Answer(self._status, b"".join(self._body), self._request_id, self._retry_after)

    def overdue(self) -> None:
        """The answer has not come in time."""
        self._end(NoAnswer("overdue", f"no answer within {self._home.timeout_s} s"))
        self.cancel()

    def _break(self, why: str) -> None:
        self._end(NoAnswer("broken", why))
        self.cancel()

    def _end(self, outcome: Answer | NoAnswer) -> None:
        """Hand over, once."""
        on_end, self._on_end = self._on_end, None
        self._home.waiting.discard(self)
        if on_end is not None:
            on_end(outcome)

    def _begin(self) -> None:
        """Nothing of an answer has come yet."""
        self._received = 0
        self._status = 0
        self._body = []
        self._request_id = self._retry_after = None
        self._has_head = self._is_framed = self._is_whole = self._may_stay = self._is_followed = False
