"""The agent for machines whose start-up document has no room for it: fetched with the rental's unused bootstrap token.

The machine was told the sha256 of what it is to run, so this route cannot be made to give it anything else.
"""

from __future__ import annotations

import asyncio

from aiohttp import web

from broker.api.auth import bearer
from broker.api.problems import Problem
from broker.api.registry import Call, Route, route
from broker.worker_sessions import Refused, check_bootstrap
from jobs.clock import db_now
from workers.package import AgentPackage, build_agent

ZIP_TYPE = "application/zip"


class AgentDownload:
    """The route of one application. The agent is packed at the first request, and then kept."""

    def __init__(self) -> None:
        self._package: AgentPackage | None = None

    def routes(self) -> tuple[Route, ...]:
        async def agent(call: Call) -> web.StreamResponse:
            """Fetch the agent, before its first hello."""
            return await self._send(call)

        path = "/worker/v1/rentals/{rental_id}/agent.pyz"
        return (route("GET", path, agent, tag="worker", access="bootstrap", produces=(ZIP_TYPE,)),)

    async def _send(self, call: Call) -> web.StreamResponse:
        text = bearer(call.request)
        async with call.services.database.transaction() as session:
            try:
                await check_bootstrap(session, call.path("rental_id"), text, await db_now(session))
            except Refused as refused:
                raise Problem(refused.status, refused.code, str(refused)) from refused
        if self._package is None:
            self._package = await asyncio.to_thread(build_agent)
        return web.Response(body=self._package.content, content_type=ZIP_TYPE)
