"""The engine as the agent sees it: a child that is started, watched, asked for health, and stopped.

Or, where the broker names a base URL, a server that already runs: then starting is waiting until it is healthy.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import time
from collections import deque
from pathlib import Path

import aiohttp

from workers.agent.errors import EngineFailed
from workers.agent.log import event
from workers.agent.metrics import read_metrics
from workers.agent.processes import is_anothers
from workers.agent.spec import EngineSpec
from workers.agent.timings import Timings

HOST = "127.0.0.1"
_TAIL_ROWS = 40
_PROBE = aiohttp.ClientTimeout(total=5)
# A broken connection whose cause the engine has not shown after this long (by its exit or by health) counts as a crash.
_VERDICT_S = 10.0


class Engine:
    """One engine. `start` may be called again after a crash; every start takes a free port of its own."""

    def __init__(self, spec: EngineSpec, session: aiohttp.ClientSession, folder: Path) -> None:
        self.timings = Timings(spec.phases)
        self._spec = spec
        self._session = session
        self._folder = folder
        self._agent = str(Path(sys.argv[0]).resolve())
        self._guard: asyncio.subprocess.Process | None = None
        self._watch: asyncio.Task[int] | None = None
        self._port = 0
        self._tail: deque[str] = deque(maxlen=_TAIL_ROWS)
        self.base_url = (spec.base_url or "").rstrip("/")

    @property
    def last_words(self) -> str:
        """The end of what the engine wrote, for error messages."""
        return "\n".join(self._tail)

    @property
    def has_exited(self) -> bool:
        return self._watch is not None and self._watch.done()

    @property
    def exit_status(self) -> int | None:
        """The engine's own status, 128 + n for signal n; None while it runs or when it is not ours."""
        return self._watch.result() if self._watch is not None and self._watch.done() else None

    async def wait_exited(self) -> None:
        """Return when the engine's process has ended; never for an engine that is not ours."""
        if self._watch is None:
            await asyncio.get_running_loop().create_future()
        else:
            await asyncio.wait({self._watch})

    async def start(self) -> None:
        """Start it and wait until it is healthy. EngineFailed: it ended, or was not healthy in time.

        An engine that ends at once gets a second chance, on another port: the first may have been taken meanwhile. Who took
        it may answer in its place, well or ill: a stranger's health is not ours, and it gets no line.
        """
        began = time.monotonic()
        deadline = began + self._spec.start_timeout_s
        for is_last_try in (False, True):
            if self._spec.argv is not None:
                await self._spawn(self._spec.argv)
            if await self._became_healthy(deadline):
                after_s = time.monotonic() - began
                self.timings.started(after_s)
                event("engine.ready", after_s=round(after_s, 3))
                return
            if is_last_try:
                raise EngineFailed(f"the engine ended with status {self.exit_status}: {self.last_words}")

    async def stop(self, grace_s: float | None = None) -> None:
        """SIGTERM, then SIGKILL to everything it started after `grace_s` (default: the spec's). Idempotent."""
        if self._guard is None or self._watch is None:
            return
        if not self._watch.done():
            self._guard.terminate()
            await asyncio.wait({self._watch}, timeout=self._spec.stop_grace_s if grace_s is None else grace_s)
        was_killed = not self._watch.done()
        await self.kill()
        event("engine.stopped", killed=was_killed)

    async def kill(self) -> None:
        """End it at once: the guard kills all when its standard input ends."""
        if self._guard is None or self._watch is None:
            return
        if self._guard.stdin is not None:
            self._guard.stdin.close()
        await self._watch

    async def is_healthy(self) -> bool:
        """One question to the health path."""
        try:
            async with self._session.get(
                self.base_url + self._spec.health_path, timeout=_PROBE, headers=self._spec.headers
            ) as answer:
                return answer.status == 200
        except (aiohttp.ClientError, TimeoutError):
            return False

    async def survived(self) -> bool:
        """After a broken connection: does the engine live? Undecided after some seconds means no, and it is killed."""
        deadline = time.monotonic() + _VERDICT_S
        while not self.has_exited and time.monotonic() < deadline:
            if await self.is_healthy() and not self.has_exited:
                return True
            await asyncio.sleep(0.05)
        await self.kill()
        return False

    async def metrics(self) -> dict[str, float]:
        """The mapped samples; empty where the engine has none or does not answer in time."""
        if self._spec.metrics_path is None or not self._spec.metrics:
            return {}
        url = self.base_url + self._spec.metrics_path
        try:
            async with self._session.get(url, timeout=_PROBE, headers=self._spec.headers) as answer:
                if answer.status != 200:
                    return {}
                return read_metrics(await answer.text(), self._spec.metrics)
        except (aiohttp.ClientError, TimeoutError):
            return {}

    async def _spawn(self, template: tuple[str, ...]) -> None:
        await self.kill()
        self._tail.clear()
        port = self._port = _free_port()
        self.base_url = f"http://{HOST}:{port}"
        fill = {
            "{python}": sys.executable,
            "{agent}": self._agent,
            "{dir}": str(self._folder),
            "{host}": HOST,
            "{port}": str(port),
        }
        argv = [_filled(part, fill) for part in template]
        # the agent runs in the engine's image, whose environment is the engine's (library paths, preloads)
        environment = os.environ | {name: _filled(value, fill) for name, value in self._spec.env.items()}
        self._guard = await asyncio.create_subprocess_exec(
            sys.executable,
            self._agent,
            "guard",
            "--",
            *argv,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env=environment,
            cwd=self._folder,
            start_new_session=True,  # a signal to the agent's group must not end the guard before its work is done
            limit=1 << 20,
        )
        self._watch = asyncio.create_task(self._attend(self._guard))
        event("engine.started", guard_pid=self._guard.pid, port=port)

    async def _attend(self, guard: asyncio.subprocess.Process) -> int:
        """Read what the engine writes, or it would block on a full pipe; return its exit status."""
        if guard.stdout is not None:
            rest = b""
            while chunk := await guard.stdout.read(65536):
                *rows, rest = (rest + chunk).split(b"\n")
                rest = rest[-4096:]
                texts = [row[:1000].decode("utf-8", "replace") for row in rows]
                self._tail.extend(texts)
                self.timings.read(texts)
            if rest:
                self._tail.append(rest.decode("utf-8", "replace"))
        status = await guard.wait()
        event("engine.exited", status=status)
        return status

    def _is_anothers(self) -> bool:
        """Whether who answers at our port is none of what we started."""
        if self._guard is None or not is_anothers(self._port, self._guard.pid):
            return False
        event("engine.port_taken", port=self._port)
        return True

    async def _became_healthy(self, deadline: float) -> bool:
        """False: it ended. EngineFailed: it runs, and was not healthy by `deadline`."""
        pause = 0.05
        while time.monotonic() < deadline:
            if self.has_exited:
                return False
            if await self.is_healthy() and not self._is_anothers():
                return True
            await asyncio.sleep(pause)
            pause = min(1.0, pause * 1.3)
        await self.kill()
        raise EngineFailed(
            f"the engine was not healthy at {self._spec.health_path} within {self._spec.start_timeout_s} s: "
            f"{self.last_words}"
        )


def _filled(text: str, fill: dict[str, str]) -> str:
    for name, value in fill.items():
        text = text.replace(name, value)
    return text


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port
