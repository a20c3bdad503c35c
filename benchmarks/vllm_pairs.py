"""The same lines through our worker and through `vllm run-batch`, on the same vLLM with the same arguments and cores.

Two engines are loaded once and stay: `vllm serve` for ours and that of run-batch (resident_run_batch.py); while one side
works, the other's engine idles. A pair is one run of each on the same fresh prompts, who is first changing from pair to
pair. Ours is the real agent, a process started anew for each run, with its checkpoints: from its first question for a
shard to the broker's answer to the last commit. Theirs is from reading the input file to the output file being written.
Answers have a fixed number of tokens, so the ratio of the times is that of tokens a second.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import statistics
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from benchmarks.vllm_environment import MODEL, VllmEnvironment
from tests.support.agent_process import AgentProcess, until
from tests.support.fake_broker import FakeBroker
from workers.engines import engine_spec
from workers.profile import ModelProfile

_CONTEXT = 1024
_SUBJECTS = ("a lighthouse", "the price of bread", "a lost dog", "winter at sea", "two brothers", "an old radio")
_LOAD_S = 1800.0
_RUN_S = 1800.0


@dataclass(frozen=True, slots=True)
class Run:
    """One side of a pair. `cpu_s`: of engine and front ends together; `load`: of the machine when it ended."""

    seconds: float
    cpu_s: float
    tokens: int
    load: float


@dataclass(frozen=True, slots=True)
class VllmPairs:
    """`threads`: OpenMP threads of each engine. `part_seconds` below a run's time means commits while the engine works."""

    environment: VllmEnvironment
    lines: int
    tokens: int
    threads: int
    part_seconds: float

    async def measure(self, pairs: int) -> dict[str, Any]:
        """Every run, the ratios of the pairs (ours to theirs, tokens a second), and their median."""
        ours: list[Run] = []
        theirs: list[Run] = []
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            async with self._server(folder) as (url, server), self._run_batch_process(folder) as process:
                for pair in range(pairs + 1):  # the first warms both up and is not counted
                    sides = [
                        (ours, "worker", self._worker(folder, pair, url, server)),
                        (theirs, "run_batch", self._run_batch(folder, pair, process)),
                    ]
                    for runs, side, run in sides if pair % 2 else reversed(sides):
                        runs.append(await run)
                        print(json.dumps({"pair": pair, side: asdict(runs[-1])}), file=sys.stderr, flush=True)
        return self._told(ours[1:], theirs[1:])

    def _told(self, ours: list[Run], theirs: list[Run]) -> dict[str, Any]:
        ratios = [(a.tokens / a.seconds) / (b.tokens / b.seconds) for a, b in zip(ours, theirs, strict=True)]
        return {
            "lines": self.lines,
            "tokens_a_line": self.tokens,
            "threads": self.threads,
            "cores": len(os.sched_getaffinity(0)),
            "ratio": round(statistics.median(ratios), 3),
            "ratios": [round(ratio, 3) for ratio in ratios],
            "worker_tokens_per_s": round(statistics.median(run.tokens / run.seconds for run in ours), 1),
            "run_batch_tokens_per_s": round(statistics.median(run.tokens / run.seconds for run in theirs), 1),
            "cpu_ratio": round(statistics.median(b.cpu_s / a.cpu_s for a, b in zip(ours, theirs, strict=True)), 3),
            "worker": [asdict(run) for run in ours],
            "run_batch": [asdict(run) for run in theirs],
        }

    # --- ours ---------------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def _server(self, folder: Path) -> AsyncIterator[tuple[str, int]]:
        """`vllm serve` with the command that an agent would start; its URL and process id, once it is healthy."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = str(probe.getsockname()[1])
        argv = [part.replace("{host}", "127.0.0.1").replace("{port}", port) for part in self._engine()["argv"]]
        argv[0] = str(self.environment.python.with_name("vllm"))
        async with _child(argv, folder / "serve.log", self._variables(folder)) as process:
            url = f"http://127.0.0.1:{port}"
            await until(lambda: process.returncode is not None or _is_healthy(url), "vllm serve is healthy", _LOAD_S)
            yield url, process.pid

    async def _worker(self, folder: Path, pair: int, url: str, server: int) -> Run:
        engine = self._engine() | {"argv": None, "base_url": url}
        part = {"lines": 200, "seconds": self.part_seconds, "bytes": 4 * 1024 * 1024}
        async with FakeBroker(engine=engine, part=part, heartbeat_s=10.0) as broker:
            broker.add_shard(self._requests(pair))
            profile = ModelProfile(id=MODEL, engine="url", base_url=url)
            agent = await AgentProcess.start(folder / f"machine-{pair}", broker, profile, dead_man_s=0)
            times: dict[str, float] = {}

            def begin() -> None:
                times.update(began=time.monotonic(), cpu_s=-_cpu_s(agent.pid, server))

            broker.hooks["lease"] = begin
            try:
                await until(lambda: broker.is_done or agent.process.returncode is not None, "all is done", _RUN_S)
                seconds, cpu_s = time.monotonic() - times["began"], times["cpu_s"] + _cpu_s(agent.pid, server)
                await agent.exit_status(60)
            finally:
                await agent.close()
            return self._run([line["line"] for line in broker.done.values()], seconds, cpu_s)

    # --- theirs -------------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def _run_batch_process(self, folder: Path) -> AsyncIterator[asyncio.subprocess.Process]:
        """run-batch with its engine loaded, waiting for orders."""
        argv = self._engine()["argv"]
        shared = argv[argv.index("--served-model-name") :]
        for name in ("--host", "--port", "--uvicorn-log-level"):  # what only a server has
            at = shared.index(name)
            shared = shared[:at] + shared[at + 2 :]
        script = str(Path(__file__).with_name("resident_run_batch.py"))
        command = [str(self.environment.python), script, "run-batch", "-i", "-", "-o", "-"]
        command += ["--model", str(self.environment.model), *shared]
        ready = folder / "ready"
        variables = {**self._variables(folder), "BENCH_READY": str(ready)}
        async with _child(command, folder / "run-batch.log", variables) as process:
            await until(lambda: process.returncode is not None or ready.exists(), "run-batch is loaded", _LOAD_S)
            yield process

    async def _run_batch(self, folder: Path, pair: int, process: asyncio.subprocess.Process) -> Run:
        source, target, clock = (folder / f"{pair}.{kind}" for kind in ("in.jsonl", "out.jsonl", "times"))
        source.write_text("".join(json.dumps(line) + "\n" for line in self._requests(pair)))
        assert process.stdin is not None
        process.stdin.write(f"{source} {target} {clock}\n".encode())
        await until(lambda: process.returncode is not None or clock.exists(), "run-batch has written", _RUN_S)
        times = json.loads(clock.read_text())
        lines = [json.loads(row) for row in target.read_text().splitlines()]
        return self._run(lines, times["ended"] - times["began"], times["cpu_s"])

    # --- both ---------------------------------------------------------------------------------------------------------

    def _run(self, lines: list[dict[str, Any]], seconds: float, cpu_s: float) -> Run:
        """Raises RuntimeError when a line is missing or has not the tokens that both sides were asked for."""
        written = [line["response"]["body"]["usage"]["completion_tokens"] for line in lines if not line["error"]]
        if written != [self.tokens] * self.lines:
            raise RuntimeError(
                f"{self.lines} answers of {self.tokens} tokens were expected, got {sorted(set(written))}"
            )
        return Run(round(seconds, 3), round(cpu_s, 2), sum(written), round(os.getloadavg()[0], 2))

    def _engine(self) -> dict[str, Any]:
        """What the broker would tell an agent about this engine: default concurrency, no special arguments."""
        weights = str(self.environment.model)
        return engine_spec(ModelProfile(id=MODEL, engine="vllm", weights=weights, precision="bf16", context=_CONTEXT))

    def _variables(self, folder: Path) -> dict[str, str]:
        return {"HOME": str(folder), **self.environment.variables(self.threads)}

    def _requests(self, pair: int) -> list[dict[str, Any]]:
        """Prompts of this pair alone: no engine has seen them before."""
        lines = []
        for n in range(pair * self.lines, (pair + 1) * self.lines):
            prompt = f"Write story number {n} about {_SUBJECTS[n % len(_SUBJECTS)]}."
            body = {"model": MODEL, "max_tokens": self.tokens, "temperature": 0, "ignore_eos": True}
            body["messages"] = [{"role": "user", "content": prompt}]
            lines.append({"custom_id": f"line-{n}", "method": "POST", "url": "/v1/chat/completions", "body": body})
        return lines


@asynccontextmanager
async def _child(argv: list[str], log: Path, variables: Mapping[str, str]) -> AsyncIterator[asyncio.subprocess.Process]:
    """A process that ends with the block; when it ended before, its last words become the error."""
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            *argv, stdin=asyncio.subprocess.PIPE, stdout=output, stderr=output, env=dict(variables), cwd=log.parent
        )
    try:
        yield process
    except OSError as error:
        raise RuntimeError(f"{argv[:3]}: {error}: {_tail(log)}") from error
    finally:
        family = psutil.Process(process.pid).children(recursive=True) if process.returncode is None else []
        if process.returncode is None:
            process.kill()
        for each in family:
            each.kill()
        await process.wait()


def _tail(log: Path) -> str:
    return log.read_text(encoding="utf-8", errors="replace")[-3000:]


def _is_healthy(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, TimeoutError):
        return False


def _cpu_s(*pids: int) -> float:
    """CPU-seconds of these processes and their children so far."""
    roots = [psutil.Process(pid) for pid in pids]
    family = [each for root in roots for each in [root, *root.children(recursive=True)]]
    return float(sum(sum(process.cpu_times()[:2]) for process in family))
