"""Somebody's endpoint for webhooks, and what tests do around one."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web
from multidict import CIMultiDict
from openai import AsyncOpenAI

from broker.control.deliver import Deliverer
from jobs import batches
from jobs.types import Finding

HOUR_US = 3600 * 1_000_000


@dataclass
class Receiver:
    """Somebody's endpoint: what came, and what it answers next (200 when nothing else is said)."""

    url: str = ""
    got: list[tuple[CIMultiDict[str], bytes]] = field(default_factory=list)
    answers: list[web.Response] = field(default_factory=list)
    gate: asyncio.Event | None = None
    arrived: asyncio.Event = field(default_factory=asyncio.Event)

    async def take(self, request: web.Request) -> web.Response:
        self.got.append((CIMultiDict(request.headers), await request.read()))
        self.arrived.set()
        if self.gate is not None:
            await self.gate.wait()
        return self.answers.pop(0) if self.answers else web.Response()

    @property
    def types(self) -> list[str]:
        return [json.loads(body)["type"] for _, body in self.got]

    @property
    def ids(self) -> list[str]:
        return [headers["webhook-id"] for headers, _ in self.got]


Receive = Callable[[], Awaitable[Receiver]]


async def deliver(deliverer: Deliverer) -> None:
    """What the loop does until nothing is due: a lane that has ended wakes it."""
    for _ in range(6):
        await deliverer.step()
        await deliverer.settled()


async def fail(server: Any) -> str:
    """A batch whose validation finds something: two events, the second of them its end."""
    batch = await server.new_batch()
    async with server.services.database.transaction() as session:
        await batches.fail(session, batch["id"], [Finding(line=1, code="invalid_json", message="no JSON")])
    return str(batch["id"])


async def deliveries(server: Any, webhook_id: str) -> list[dict[str, Any]]:
    return list((await server.call("GET", f"/v1/webhook_endpoints/{webhook_id}/deliveries")).json["data"])


async def hook(client: AsyncOpenAI, url: str, **more: Any) -> Any:
    return await client.webhooks.create(**{"name": "ours", "url": url, "event_types": ["batch.failed"], **more})
