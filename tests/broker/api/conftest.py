"""A real broker API on loopback: real database, real object store, real HTTP; no control loops unless a test steps them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from multidict import CIMultiDictProxy
from openai import AsyncOpenAI

from broker.api.app import ROUTES, build_app
from broker.api.registry import PARAMETERS, Route
from broker.control.loops import LoopState
from broker.control.place import await_worker
from broker.credentials import Credentials
from broker.database import Database
from broker.failpoints import Failpoints
from broker.keyring import open_keyring
from broker.keys import Role, create_key, ensure_admin_key
from broker.object_keys import ObjectKeys
from broker.sealed_store import SealedStore
from broker.services import Services
from broker.settings import JobsSettings, Settings
from broker.vault import Vault
from jobs.clock import db_now
from jobs.objects import ObjectStore
from markets import rentals
from markets.offer import Offer
from tests.support.planning import PlanningHere
from tests.support.wire_agent import (
    Agent,
    Rent,
    confirm,
    offer,
    running_batch,
)
from workers.profile import ModelProfile

MODEL = "tiny"


@dataclass
class Answer:
    status: int
    headers: CIMultiDictProxy[str]
    raw: bytes
    json: Any

    @property
    def code(self) -> str:
        return str(self.json["error"]["code"])


@dataclass
class Server:
    """One running API and how to call it as anybody."""

    url: str
    services: Services
    routes: tuple[Route, ...]
    loops: dict[str, LoopState]
    admin_key: str
    http: aiohttp.ClientSession

    async def key(self, *roles: Role, project: str = "default", principal: str = "somebody") -> str:
        async with self.services.database.transaction() as session:
            now_us = await db_now(session)
            _, text = await create_key(session, principal=principal, project=project, roles=roles, now_us=now_us)
        return text

    async def call(
        self, method: str, path: str, *, key: str | None = "admin", headers: dict[str, str] | None = None, **body: Any
    ) -> Answer:
        """One request; `key` "admin" is the admin key, None sends none. Pages are asked for, not streams."""
        sent = {"Accept": "application/json", **(headers or {})}
        if key is not None:
            sent["Authorization"] = f"Bearer {self.admin_key if key == 'admin' else key}"
        async with self.http.request(method, self.url + path, headers=sent, **body) as response:
            raw = await response.read()
            is_json = response.content_type == "application/json"
            return Answer(response.status, response.headers, raw, json.loads(raw) if is_json and raw else None)

    async def upload(self, content: bytes, *, key: str = "admin", filename: str = "in.jsonl") -> str:
        """Upload as an ordinary client; the file's id."""
        form = aiohttp.FormData()
        form.add_field("purpose", "batch")
        form.add_field("file", content, filename=filename, content_type="application/octet-stream")
        answer = await self.call("POST", "/v1/files", key=key, data=form)
        assert answer.status == 200, answer.raw
        return str(answer.json["id"])

    async def new_batch(self, *, lines: int = 3, key: str = "admin", **fields: Any) -> dict[str, Any]:
        """Upload and create; the batch is validating."""
        file_id = await self.upload(request_lines(lines), key=key)
        body = {"input_file_id": file_id, "endpoint": "/v1/chat/completions", "completion_window": "24h", **fields}
        answer = await self.call("POST", "/v1/batches", key=key, json=body)
        assert answer.status == 200, answer.raw
        return dict(answer.json)

    def concrete(self, route: Route) -> str:
        """A path of this route with ids of nothing."""
        return route.path.format(**{name: "a.b" if name == "token" else "x" for name in PARAMETERS})

    def openai(self, key: str | None = None, **options: Any) -> AsyncOpenAI:
        return AsyncOpenAI(**{"base_url": f"{self.url}/v1", "api_key": key or self.admin_key, **options})


@pytest.fixture
def input_lines() -> Callable[..., bytes]:
    return request_lines


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data=tmp_path, jobs=JobsSettings(max_file_bytes=1024 * 1024))


@pytest.fixture
async def server(settings: Settings, database: Database, object_store: ObjectStore) -> AsyncIterator[Server]:
    vault = Vault(database, open_keyring(settings.vault, settings.data))
    services = Services(
        settings=settings,
        database=database,
        store=SealedStore(object_store, ObjectKeys(database, vault)),
        markets={"sandbox": None},  # a name to rent at: no test here asks it
        models={
            MODEL: ModelProfile(id=MODEL, engine="url", base_url="http://127.0.0.1:9", tokens_per_s={"cpu": (200, 40)})
        },
        solver=PlanningHere(),
        secret=b"a secret of thirty-two bytes....",
        failpoints=Failpoints(None),
        public_url="http://127.0.0.1",
        owner="test",
        vault=vault,
        credentials=Credentials(database, vault),
        wake={name: asyncio.Event() for name in ("validate", "plan", "finalise", "reconcile")},
    )
    async with database.transaction() as session:
        admin_key = await ensure_admin_key(session, await db_now(session))
    assert admin_key is not None
    loops: dict[str, LoopState] = {}
    app = build_app(services, loops)
    runner = web.AppRunner(app, auto_decompress=False, access_log=None, shutdown_timeout=1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=60)) as http:
        yield Server(f"http://127.0.0.1:{port}", services, app[ROUTES], loops, admin_key, http)
    await runner.cleanup()


def request_lines(count: int, *, model: str = MODEL, max_tokens: int = 16) -> bytes:
    """A valid input file of `count` chat requests."""
    return b"".join(_line(number, model, max_tokens) for number in range(count))


def _line(number: int, model: str, max_tokens: int) -> bytes:
    body = {"model": model, "messages": [{"role": "user", "content": f"question {number}"}], "max_tokens": max_tokens}
    request = {"custom_id": f"line-{number}", "method": "POST", "url": "/v1/chat/completions", "body": body}
    return json.dumps(request).encode() + b"\n"


@pytest.fixture
def rent(server: Any) -> Rent:
    """Rent a machine as the place loop does: intent, worker row, and the market's confirmation."""
    made = 0

    async def rent(
        of: Offer | None = None, *, confirmed: bool = True, batches: tuple[str, ...] = (), model: str = MODEL
    ) -> Agent:
        nonlocal made
        made += 1
        of = of or offer()
        rental_id, token = f"rental_{made}", f"{made:064d}"
        async with server.services.database.transaction() as session:
            now_us = await db_now(session)
            await rentals.record_intent(
                session,
                rental_id=rental_id,
                offer=of,
                project="default",
                model=model,
                precision="auto",
                purpose={"batches": list(batches)},
                now_us=now_us,
            )
            await rentals.mark_creating(session, rental_id, now_us=now_us)
            await await_worker(session, rental_id, token, now_us)
        agent = Agent(server, rental_id, token)
        if confirmed:
            await confirm(server, agent, of)
        return agent

    return rent


@pytest.fixture
async def ready(server: Any, rent: Rent) -> tuple[Agent, str]:
    """A worker that said hello and is ready, and a batch of four lines for it."""
    batch = await running_batch(server, offer())
    agent = await rent()
    assert (await agent.hello()).status == 200
    assert (await agent.heartbeat()).status == 200
    return agent, batch
