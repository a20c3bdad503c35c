"""What the driver spends on a request beside a bare aiohttp client, on the same loop against the same engine.

`driver` is the agent's own path from a waiting line to a counted part (pool, HTTP, judging, record, usage, parts that are
cut, compressed and given to a committer that takes everything). `aiohttp` posts the same bytes, reads the answer and
parses it with the same parser; nothing more. Both keep as many requests in flight; the engine is a process of its own.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import uvloop

from benchmarks.calibrate import json_loop
from workers.agent.answers import parse
from workers.agent.driver import Driver
from workers.agent.engine import Engine
from workers.agent.failpoints import Failpoints
from workers.agent.lean import IDLE_CONNECTION_S, exchange_for
from workers.agent.leases import HeldLease
from workers.agent.lines import read_shard
from workers.agent.parts import Parts
from workers.agent.pool import Pool
from workers.agent.spec import EngineSpec, PartLimits
from workers.agent.wire import Wire

_ENDPOINT = "/v1/chat/completions"
_PART = PartLimits(lines=200, seconds=10.0, bytes=4_000_000)


@dataclass(frozen=True, slots=True)
class Spent:
    """CPU-seconds a request: of the loop's thread, and of the whole process (which also compresses parts)."""

    loop: float
    process: float


class TakesAll(Wire):
    """A broker that costs nothing: every part is stored and counted at once."""

    async def part_target(self, path: str, request: Mapping[str, Any]) -> dict[str, Any]:
        return {"key": "k", "put_url": "http://127.0.0.1/k", "headers": {}}

    async def put(self, url: str, content: bytes, headers: Mapping[str, str]) -> None:
        return None

    async def commit(self, shard_id: str, commit: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "outcome": "committed",
            "done": commit["lines"],
            "lease_lost": False,
            "shard_done": False,
            "outcome_before": None,
            "message": None,
        }


async def measure(requests: int, rounds: int, concurrency: int, tokens: int) -> dict[str, Any]:
    """Medians over interleaved rounds; the first of each warms up and is not counted."""
    command = [sys.executable, "-m", "benchmarks.canned_engine", "--tokens", str(tokens)]
    engine = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    assert engine.stdout is not None
    url = f"http://127.0.0.1:{int(await engine.stdout.readline())}"
    bare, driven = [], []
    try:
        for _ in range(rounds + 1):
            bare.append(await _bare(url, requests, concurrency))
            driven.append(await _driven(url, requests, concurrency))
    finally:
        engine.kill()
        await engine.wait()
    bare, driven = bare[1:], driven[1:]
    return {
        "requests": requests,
        "rounds": rounds,
        "concurrency": concurrency,
        "aiohttp_us": _median_us(bare, lambda spent: spent.process),
        "driver_us": _median_us(driven, lambda spent: spent.process),
        "driver_loop_us": _median_us(driven, lambda spent: spent.loop),
        "ratio": _ratio(driven, bare, lambda spent: spent.process),
        "ratio_loop": _ratio(driven, bare, lambda spent: spent.loop),
        "calibration": {"json_cpu_s": round(min(json_loop() for _ in range(3)), 4)},
    }


def run(requests: int, rounds: int, concurrency: int, tokens: int) -> dict[str, Any]:
    """`measure` on the loop that the agent uses where it is there."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(measure(requests, rounds, concurrency, tokens))


def shard_of(requests: int) -> bytes:
    """An input file of so many chat requests, each about 700 bytes."""
    prompt = "Summarise the following text in two sentences. " * 12
    rows = [
        {
            "custom_id": f"request-{n}",
            "method": "POST",
            "url": _ENDPOINT,
            "body": {
                "model": "m",
                "max_tokens": 128,
                "temperature": 0,
                "messages": [{"role": "user", "content": f"{n}: {prompt}"}],
            },
        }
        for n in range(requests)
    ]
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


async def _bare(url: str, requests: int, concurrency: int) -> Spent:
    """aiohttp as anybody would use it for this: one session, a pool of clients, JSON parsed."""
    lines = read_shard(shard_of(requests), first_idx=0, lines=requests, served_model=None, skip=())
    async with _session() as session:

        async def client() -> None:
            while lines:
                line = lines.pop()
                async with session.post(
                    url + _ENDPOINT,
                    data=line.body,
                    headers={"Content-Type": "application/json"},
                    timeout=aiohttp.ClientTimeout(total=600),
                    allow_redirects=False,
                ) as answer:
                    assert isinstance(parse(await answer.read()), dict)

        return await _spent(lambda: asyncio.gather(*(client() for _ in range(concurrency))), requests)


async def _driven(url: str, requests: int, concurrency: int) -> Spent:
    """The driver and the parts, as workers.agent.run joins them, on one lease of all lines."""
    lines = read_shard(shard_of(requests), first_idx=0, lines=requests, served_model=None, skip=())
    spec = _spec(url, concurrency)
    async with _session() as session:
        with tempfile.TemporaryDirectory() as folder:
            engine = Engine(spec, session, Path(folder))
            await engine.start()
        pool = Pool(max_attempts=3)
        over = asyncio.Event()

        def on_finished() -> None:
            parts.wake()
            if not pool.leases:
                over.set()

        def on_change() -> None:
            on_finished()
            driver.wake()

        driver = Driver(
            spec=spec,
            engine=engine,
            exchange=exchange_for(spec, session),
            pool=pool,
            on_finished=on_finished,
            has_room=lambda: parts.has_room,
        )
        parts = Parts(
            wire=TakesAll(session, "http://127.0.0.1", "-"),
            pool=pool,
            limits=_PART,
            failpoints=Failpoints(None),
            counters=driver.counters,
            on_change=on_change,
            on_let_go=lambda: None,
        )
        lease = HeldLease("shard", 1, "n", 3600.0, _ENDPOINT, "/parts", time.monotonic())
        lease.admit(lines, {}, alone_from=2)
        pool.add(lease, time.monotonic())
        work = [asyncio.create_task(driver.run()), asyncio.create_task(parts.run())]
        spent = await _spent(over.wait, requests)
        assert driver.counters["requests"] == 0, "the last part reports and clears the counters"
        for task in work:
            task.cancel()
        await asyncio.wait(work)
    return spent


async def _spent(work: Callable[[], Awaitable[object]], requests: int) -> Spent:
    process, loop = time.process_time(), time.thread_time()
    await work()
    return Spent((time.thread_time() - loop) / requests, (time.process_time() - process) / requests)


def _session() -> aiohttp.ClientSession:
    """As workers.agent.run makes it."""
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=IDLE_CONNECTION_S)
    return aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar())


def _spec(url: str, concurrency: int) -> EngineSpec:
    return EngineSpec(
        argv=None,
        env={},
        base_url=url,
        health_path="/health",
        start_timeout_s=10.0,
        stop_grace_s=0.0,
        concurrency_start=concurrency,
        concurrency_max=concurrency,
        request_timeout_s=600.0,
        metrics_path="/metrics",
        metrics={"running": "vllm:num_requests_running", "waiting": "vllm:num_requests_waiting"},
        headers={},
        served_model=None,
    )


def _median_us(rounds: list[Spent], of: Callable[[Spent], float]) -> float:
    return round(statistics.median(of(spent) for spent in rounds) * 1e6, 1)


def _ratio(ours: list[Spent], theirs: list[Spent], of: Callable[[Spent], float]) -> float:
    return round(statistics.median(of(a) / of(b) for a, b in zip(ours, theirs, strict=True)), 3)
