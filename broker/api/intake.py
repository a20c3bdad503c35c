"""The end of intake: a broker that stops takes no new work, lets what it has begun end, and says so to who asks.

Reading goes on, and workers go on: their commits are work that is paid for. What is refused may be sent again at once to
another replica, or in a moment to the next process here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import structlog
from aiohttp import web

from broker.api import health_shapes as shapes
from broker.api.problems import Problem

log = structlog.get_logger()

RETRY_AFTER_S = 5
READS = frozenset({"GET", "HEAD", "OPTIONS"})
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Intake:
    """Open until `close`; a middleware of the application, inside of the one that makes answers of problems."""

    def __init__(self) -> None:
        self._closed = False
        self._open_requests = 0
        self._idle = asyncio.Event()
        self._idle.set()

    def close(self) -> None:
        """Refuse new work from now on."""
        self._closed = True

    async def drained(self, *, within_s: float) -> None:
        """Wait until what had begun has ended, `within_s` at most."""
        try:
            await asyncio.wait_for(self._idle.wait(), within_s)
        except TimeoutError:
            log.warning("intake.cut_off", requests=self._open_requests, after_s=within_s)

    @web.middleware
    async def guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if not _is_intake(request):
            return _unready() if self._closed and request.path == "/readyz" else await handler(request)
        if self._closed:
            raise Problem(
                503,
                "stopping",
                f"This broker is stopping and takes no new work; send it again in {RETRY_AFTER_S} s.",
                headers={"Retry-After": str(RETRY_AFTER_S), "Connection": "close"},
            )
        self._open_requests += 1
        self._idle.clear()
        try:
            return await handler(request)
        finally:
            self._open_requests -= 1
            if not self._open_requests:
                self._idle.set()


def _is_intake(request: web.Request) -> bool:
    return request.method not in READS and not request.path.startswith("/worker/")


def _unready() -> web.Response:
    health = shapes.Health(status="unready", problems=["this broker is stopping"], leads=False)
    return web.Response(status=503, body=health.model_dump_json().encode(), content_type="application/json")
