"""A server that may send webhooks to this machine, and endpoints for them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web
from openai import AsyncOpenAI

from broker.control.deliver import Deliverer
from broker.settings import Settings, WebhookSettings
from broker.webhook_sender import WebhookSender
from tests.support.webhook_receiver import Receive, Receiver


@pytest.fixture
async def receive() -> AsyncIterator[Receive]:
    runners = []

    async def receive() -> Receiver:
        receiver, app = Receiver(), web.Application()
        app.router.add_post("/hook", receiver.take)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        runners.append(runner)
        receiver.url = f"http://127.0.0.1:{runner.addresses[0][1]}/hook"
        return receiver

    yield receive
    for runner in runners:
        await runner.cleanup()


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"webhooks": WebhookSettings(allow_http=True, allow_private=True, per_project=3)})


@pytest.fixture
async def client(server: Any) -> AsyncIterator[AsyncOpenAI]:
    async with server.openai(await server.key("submitter"), max_retries=0) as client:
        yield client


@pytest.fixture
async def deliverer(server: Any) -> AsyncIterator[Deliverer]:
    deliverer = Deliverer(server.services, WebhookSender(server.services.settings.webhooks))
    yield deliverer
    await deliverer.close(within_s=0)
