"""A provider's API on loopback: its answers, its official document as the judge of every request, and its bad days."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from tests.markets.sources.document import Document

Answer = Any  # JSON, bytes as they are, a Reply, or a function of the request that gives one of them
FOREVER = 1_000


@dataclass(frozen=True)
class Reply:
    """An answer with headers of its own."""

    content: Any
    headers: Mapping[str, str]


@dataclass(frozen=True)
class Fault:
    """What happens to a request instead of an answer. `times` many, from the `after`-th request on."""

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = None
    drops: bool = False
    hangs: bool = False
    cut: bool = False
    times: int = FOREVER
    after: int = 0

    def hits(self, number: int) -> bool:
        return self.after <= number < self.after + self.times


@dataclass(eq=False)
class Loopback:
    """`async with Loopback(answers) as api`. `answers` by `"GET /path"`; whatever else is asked is 404.

    `document`: each request, and each answer, must be as it says; `violations` collects what is not. A fault's refusal
    echoes the whole request, as careless servers do: no secret of it may come back in an error.

    `mangle` changes each answer before it is sent.
    """

    answers: Mapping[str, Answer]
    document: Document | None = None
    faults: tuple[Fault, ...] = ()
    mangle: Callable[[Any], Any] | None = None
    requests: list[str] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)
    url: str = ""

    async def __aenter__(self) -> Loopback:
        self._over = asyncio.Event()
        application = web.Application()
        application.router.add_route("*", "/{path:.*}", self._answer)
        self._runner = web.AppRunner(application, shutdown_timeout=0)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._over.set()
        await self._runner.cleanup()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        number = len(self.requests)
        asked = f"{request.method} {request.path}"
        body = await request.read()
        self.requests.append(f"{request.method} {request.path_qs} {body.decode()}".strip())
        if self.document is not None:
            self.violations += self.document.request_problems(request, body)
        fault = next((each for each in self.faults if each.hits(number)), None)
        if fault is not None and not fault.cut:
            return await self._suffer(fault, request, body)
        if asked not in self.answers:
            return web.json_response({"error": f"no {asked} here"}, status=404)
        answer = self.answers[asked]
        said = answer(request, body) if callable(answer) else answer
        content, headers = (said.content, said.headers) if isinstance(said, Reply) else (said, {})
        if self.document is not None and not isinstance(content, bytes):
            self.violations += self.document.answer_problems(request, content)
        if self.mangle is not None:
            content = self.mangle(content)
        text = content if isinstance(content, bytes) else json.dumps(content).encode()
        if fault is not None:
            text = text[: len(text) // 2]
        return web.Response(body=text, content_type="application/json", headers=headers)

    async def _suffer(self, fault: Fault, request: web.Request, body: bytes) -> web.StreamResponse:
        if fault.hangs:
            await self._over.wait()
            return web.Response()
        if fault.drops:
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        echo = f"{request.path_qs} {dict(request.headers)} {body.decode()}".encode()
        return web.Response(status=fault.status, headers=fault.headers, body=echo if fault.body is None else fault.body)


def paged(pages: list[Any], key: str) -> Callable[[web.Request, bytes], Any]:
    """An answer that depends on one query parameter: `pages[int(it)]`, the first without it."""
    return lambda request, _: pages[int(request.query.get(key, "0"))]
