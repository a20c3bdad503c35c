"""The real agent, as a process of its own, laid out as a market would lay it out."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from markets.market import MachineStart
from tests.support.fake_broker import FakeBroker
from workers.launch import machine_start
from workers.profile import ModelProfile

SCRIPTED = Path(__file__).parent / "scripted_engine.py"
METRICS = {"running": "scripted:running", "waiting": "scripted:waiting", "preemptions_total": "scripted:preemptions"}


def scripted_profile(*args: str, **changes: Any) -> ModelProfile:
    """The scripted engine as a model; `args` are its options."""
    fields: dict[str, Any] = {
        "id": "scripted",
        "engine": "command",
        "argv": (sys.executable, str(SCRIPTED), "--host", "{host}", "--port", "{port}"),
        "args": args,
        "parallel": 8,
        "metrics_path": "/metrics",
        "metrics": METRICS,
        "request_timeout_s": 60,
    }
    return ModelProfile(**(fields | changes))


def _lay_out(folder: Path, start: MachineStart) -> int:
    """Put the files of a start into `folder`; the descriptor of the file that takes standard error."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in start.files.items():
        (folder / name).write_bytes(content)
    return os.open(folder / "stderr", os.O_WRONLY | os.O_CREAT)


async def until(condition: Callable[[], object], what: str, seconds: float = 60.0) -> None:
    """Wait for something to become true. The time is a limit for the broken case, generous for a busy machine."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"after {seconds} s still not: {what}"
        await asyncio.sleep(0.02)


class AgentProcess:
    """`agent.pyz run` in a folder of its own. `events()` is what it wrote on standard error."""

    def __init__(self, folder: Path, process: asyncio.subprocess.Process) -> None:
        self.folder = folder
        self.process = process
        self.pid = process.pid

    @classmethod
    async def start(
        cls,
        folder: Path,
        broker: FakeBroker,
        profile: ModelProfile,
        *,
        rental_id: str = "rental_1",
        dead_man_s: int = 60,
        failpoint: str | None = None,
        market: str = "",
    ) -> AgentProcess:
        start = machine_start(
            launch="process",
            rental_id=rental_id,
            broker_url=broker.url,
            bootstrap_token=broker.expect_worker(rental_id),
            profile=profile,
            dead_man_s=dead_man_s,
            failpoint=failpoint,
            market=market,
        )
        stderr = _lay_out(folder, start)
        process = await asyncio.create_subprocess_exec(
            *(part.replace("{dir}", str(folder)) for part in start.argv),
            env={name: value.replace("{dir}", str(folder)) for name, value in start.env.items()},
            stderr=stderr,
            start_new_session=True,
        )
        os.close(stderr)
        return cls(folder, process)

    def events(self, name: str | None = None) -> list[dict[str, Any]]:
        rows = (self.folder / "stderr").read_text().splitlines()
        parsed = [json.loads(row) for row in rows if row.startswith("{") and row.endswith("}")]
        return [event for event in parsed if name is None or event["event"] == name]

    def engines(self) -> list[psutil.Process]:
        """Everything below the agent now: guard, engine, and what the engine started."""
        try:
            return psutil.Process(self.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    async def exit_status(self, seconds: float = 60.0) -> int:
        """Wait for its end. On a timeout the agent's own words are in the message."""
        try:
            return await asyncio.wait_for(self.process.wait(), seconds)
        except TimeoutError:
            raise AssertionError(f"the agent still runs after {seconds} s; it says:\n{self.stderr()}") from None

    def stderr(self) -> str:
        return (self.folder / "stderr").read_text()

    async def close(self) -> None:
        """For the end of a test: nothing of it may be left."""
        if self.process.returncode is None:
            self.process.kill()
        await self.process.wait()
