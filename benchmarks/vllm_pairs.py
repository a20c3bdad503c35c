"""The same lines through our worker and through `vllm run-batch`, on the same vLLM with the same arguments and cores.

A pair is one run of each, one after the other, who is first changing from pair to pair; both start a fresh engine, whose
load is not counted. Ours is the real agent as a process, with its checkpoints: from its first question for a shard to
the broker's answer to the last commit. Theirs is from reading the input file to the output file being written
(timed_run_batch.py). Answers have a fixed number of tokens, so the ratio of times is that of tokens a second.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
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
_LONGEST_S = 1800.0


@dataclass(frozen=True, slots=True)
class Run:
    """One side of a pair. `cpu_s`: of engine and front ends together; `load`: of the machine when it ended."""

    seconds: float
    cpu_s: float
    tokens: int
    load: float


@dataclass(frozen=True, slots=True)
class VllmPairs:
    """`threads`: OpenMP threads of the engine. `args`: more arguments of vLLM, the same for both."""

    environment: VllmEnvironment
    lines: int
    tokens: int
    threads: int
    part_seconds: float
    args: tuple[str, ...] = ()

    async def measure(self, pairs: int) -> dict[str, Any]:
        """Every run, the ratios of the pairs (ours to theirs, tokens a second), and their median."""
        ours: list[Run] = []
        theirs: list[Run] = []
        for pair in range(pairs):
            sides = [(ours, self._ours), (theirs, self._run_batch)]
            for runs, side in sides if pair % 2 else reversed(sides):
                with tempfile.TemporaryDirectory() as folder:
                    runs.append(await side(Path(folder)))
                print(json.dumps({side.__name__: asdict(runs[-1])}), file=sys.stderr, flush=True)
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

    async def _ours(self, folder: Path) -> Run:
        profile = self._profile()
        part = {"lines": 200, "seconds": self.part_seconds, "bytes": 4 * 1024 * 1024}
        async with FakeBroker(engine=engine_spec(profile), part=part, heartbeat_s=10.0) as broker:
            broker.add_shard(self._requests())
            times: dict[str, float] = {}
            agent = await AgentProcess.start(folder / "machine", broker, profile, dead_man_s=0)

            def begin() -> None:
                times.update(began=time.monotonic(), cpu_s=-_cpu_s(agent.pid))

            broker.hooks["lease"] = begin
            try:
                await until(lambda: broker.is_done or agent.process.returncode is not None, "all is done", _LONGEST_S)
                ended, cpu_s = time.monotonic(), times["cpu_s"] + _cpu_s(agent.pid)
                await agent.exit_status(60)
            finally:
                await agent.close()
            lines = [line["line"] for line in broker.done.values()]
        return self._run(lines, ended - times["began"], cpu_s)

    async def _run_batch(self, folder: Path) -> Run:
        source, target, clock = folder / "in.jsonl", folder / "out.jsonl", folder / "times.json"
        source.write_text("".join(json.dumps(line) + "\n" for line in self._requests()))
        profile = self._profile()
        # the arguments of the engine that the agent starts, without what only a server has
        serve = engine_spec(profile)["argv"]
        shared = serve[serve.index("--served-model-name") :]
        for name in ("--host", "--port", "--uvicorn-log-level"):
            at = shared.index(name)
            shared = shared[:at] + shared[at + 2 :]
        script = str(Path(__file__).with_name("timed_run_batch.py"))
        command = [str(self.environment.python), script, "run-batch", "-i", str(source), "-o", str(target)]
        log = folder / "log"
        with log.open("wb") as output:
            process = await asyncio.create_subprocess_exec(
                *command,
                "--model",
                str(self.environment.model),
                *shared,
                cwd=folder,
                stdout=output,
                stderr=output,
                env={"HOME": str(folder), **profile.env, "BENCH_TIMES": str(clock)},
            )
            status = await asyncio.wait_for(process.wait(), _LONGEST_S)
        if status != 0:
            raise RuntimeError(f"vllm run-batch ended with status {status}: {log.read_text()[-3000:]}")
        times = json.loads(clock.read_text())
        lines = [json.loads(row) for row in target.read_text().splitlines()]
        return self._run(lines, times["ended"] - times["began"], times["cpu_s"])

    def _run(self, lines: list[dict[str, Any]], seconds: float, cpu_s: float) -> Run:
        """Raises RuntimeError when a line is missing or has not the tokens that both sides were asked for."""
        written = [line["response"]["body"]["usage"]["completion_tokens"] for line in lines if not line["error"]]
        if written != [self.tokens] * self.lines:
            raise RuntimeError(
                f"{self.lines} answers of {self.tokens} tokens were expected, got {sorted(set(written))}"
            )
        return Run(round(seconds, 3), round(cpu_s, 2), sum(written), round(os.getloadavg()[0], 2))

    def _profile(self) -> ModelProfile:
        return ModelProfile(
            id=MODEL,
            engine="vllm",
            weights=str(self.environment.model),
            precision="bf16",
            context=_CONTEXT,
            args=self.args,
            env=self.environment.variables(self.threads),
            load_s=60,
        )

    def _requests(self) -> list[dict[str, Any]]:
        return [
            {
                "custom_id": f"line-{n}",
                "method": "POST",
                "url": "/v1/chat/completions",
                "body": {
                    "model": MODEL,
                    "max_tokens": self.tokens,
                    "temperature": 0,
                    "ignore_eos": True,
                    "messages": [
                        {"role": "user", "content": f"Write story number {n} about {_SUBJECTS[n % len(_SUBJECTS)]}."}
                    ],
                },
            }
            for n in range(self.lines)
        ]


def _cpu_s(pid: int) -> float:
    """CPU-seconds of a process and its children so far."""
    root = psutil.Process(pid)
    return float(sum(sum(process.cpu_times()[:2]) for process in [root, *root.children(recursive=True)]))
