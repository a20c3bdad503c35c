"""A real sandbox process for tests, and patience with deadlines."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import jsonschema
from ulid import ULID

from markets.sandbox.client import SandboxMarket
from markets.sandbox.process import SandboxHandle, ensure_running, running

OWNER = "broker_test"

CATALOGUE = """
[[offers]]
id = "plenty"
region = "eu-de"
country = "DE"
tier = "named_datacenter"
operator = "Test GmbH"
jurisdictions = ["DE"]
pricing = "spot"
price = "0.36"
capacity = 100
hazard = "0.1"
notice_s = 30

[[offers]]
id = "by-the-minute"
region = "eu-fr"
country = "FR"
tier = "named_datacenter"
pricing = "on_demand"
price = "0.07"
capacity = 100
granularity_s = 60
minimum_s = 120

[[offers]]
id = "one"
tier = "anonymous"
pricing = "spot"
price = "0.003"
capacity = 1

[[offers]]
id = "none"
tier = "claimed"
country = "IN"
pricing = "spot"
price = "0.003"
capacity = 0

[[offers]]
id = "unpriced"
tier = "hyperscaler_region"
country = "SG"
pricing = "on_demand"
price = "0"
capacity = 4

[[offers]]
id = "slow-boot"
tier = "claimed"
country = "NL"
pricing = "spot"
price = "0.01"
capacity = 4
boot_s = 600
"""


@dataclass(frozen=True)
class Sandbox:
    """A sandbox process in its own folder; `find` starts it again after it died."""

    folder: Path
    catalogue: Path

    async def find(self) -> SandboxHandle:
        return await ensure_running(self.folder, catalogue=self.catalogue)

    def market(self, **options: float) -> SandboxMarket:
        return SandboxMarket(self.find, owner=OWNER, **options)

    async def kill(self) -> None:
        """SIGKILL to the provider itself."""
        handle = await self.find()
        os.kill(handle.pid, signal.SIGKILL)
        await until(lambda: running(self.folder) is None, "the sandbox is dead")

    async def end(self) -> None:
        """SIGTERM, and wait until it has ended cleanly."""
        handle = await self.find()
        os.kill(handle.pid, signal.SIGTERM)
        await until(lambda: running(self.folder) is None, "the sandbox ends on SIGTERM")

    @property
    def journal(self) -> Path:
        return self.folder / "journal.jsonl"


class Api:
    """The sandbox's HTTP API as anyone may use it; every answer is checked against the schema it has published."""

    def __init__(self, url: str, token: str, session: aiohttp.ClientSession, document: dict[str, Any]) -> None:
        self._url, self._token, self._session, self._document = url, token, session, document

    @classmethod
    @asynccontextmanager
    async def of(cls, sandbox: Sandbox) -> AsyncIterator[Api]:
        handle = await sandbox.find()
        async with aiohttp.ClientSession() as session:
            async with session.get(f"{handle.url}/openapi.json") as response:
                document = await response.json()
            yield cls(handle.url, handle.token, session, document)

    async def __call__(self, method: str, path: str, body: Any = None, key: str | None = None) -> tuple[int, Any]:
        headers = {"Authorization": f"Bearer {key or self._token}"}
        async with self._session.request(method, self._url + path, json=body, headers=headers) as response:
            answer = await response.json()
            self._check(method, path, response.status, answer)
            return response.status, answer

    def _check(self, method: str, path: str, status: int, answer: Any) -> None:
        template = re.sub(r"/(instances|offers)/[^/]+", r"/\1/{id}", path.partition("?")[0])
        responses = self._document["paths"][template][method.lower()]["responses"]
        schema = responses[str(status)]["content"]["application/json"]["schema"]
        whole = {**schema, "components": self._document["components"]}
        jsonschema.Draft202012Validator(whole, format_checker=jsonschema.FormatChecker()).validate(answer)


def sandbox_in(folder: Path) -> Iterator[Sandbox]:
    folder.mkdir(parents=True)
    catalogue = folder / "catalogue.toml"
    catalogue.write_text(CATALOGUE)
    sandbox = Sandbox(folder, catalogue)
    handle = _run(sandbox.find)
    yield sandbox
    handle = running(folder) or handle
    if running(folder) is not None:
        os.kill(handle.pid, signal.SIGTERM)
        _run(lambda: until(lambda: running(folder) is None, "the sandbox ends on SIGTERM"))


def _run(ask: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    """In a thread: the fixture may be asked for from inside a running loop."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(lambda: asyncio.run(ask())).result()


def new_tag() -> str:
    return f"rental_{ULID()}"


async def until(condition: Callable[[], bool], promise: str, *, deadline_s: float = 30) -> None:
    """Poll until `condition` holds; fail with the promise that broke."""
    end = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < end, f"not within {deadline_s} s: {promise}"
        await asyncio.sleep(0.01)


async def until_true(condition: Callable[[], Awaitable[bool]], promise: str, *, deadline_s: float = 30) -> None:
    """`until` for a question that must be awaited."""
    end = time.monotonic() + deadline_s
    while not await condition():
        assert time.monotonic() < end, f"not within {deadline_s} s: {promise}"
        await asyncio.sleep(0.02)
