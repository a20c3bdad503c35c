"""A metadata service as AWS's has it (paths and bodies: amazon-ec2-metadata-mock), for hosts and tests of our own."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web


@dataclass(eq=False)
class FakeMetadata:
    """`async with FakeMetadata() as imds`. `action` and `rebalance` are what is announced; None answers 404.

    IMDSv2 only: a question without a token of the last `forget` is 401. `asked` are the paths in their order.
    """

    host: str = "127.0.0.1"
    port: int = 0
    action: Any = None
    rebalance: Any = None
    tokens: set[str] = field(default_factory=set)
    asked: list[str] = field(default_factory=list)
    address: str = ""

    async def __aenter__(self) -> FakeMetadata:
        application = web.Application()
        application.add_routes(
            [
                web.put("/latest/api/token", self._token),
                web.get("/latest/meta-data/spot/instance-action", self._told("action")),
                web.get("/latest/meta-data/events/recommendations/rebalance", self._told("rebalance")),
            ]
        )
        self._runner = web.AppRunner(application, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, self.host, self.port).start()
        self.address = f"http://{self.host}:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()

    def forget(self) -> None:
        """All tokens have expired."""
        self.tokens.clear()

    async def _token(self, request: web.Request) -> web.Response:
        self.asked.append(request.path)
        if not request.headers.get("X-aws-ec2-metadata-token-ttl-seconds", "").isdigit():
            return web.Response(status=400)
        token = secrets.token_urlsafe(40)
        self.tokens.add(token)
        return web.Response(text=token)

    def _told(self, name: str) -> Any:
        async def tell(request: web.Request) -> web.Response:
            self.asked.append(request.path)
            if request.headers.get("X-aws-ec2-metadata-token") not in self.tokens:
                return web.Response(status=401)
            told = getattr(self, name)
            return web.Response(status=404) if told is None else web.json_response(told)

        return tell
