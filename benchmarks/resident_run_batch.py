"""`vllm run-batch`, but its engine stays: run with the vLLM environment's Python, arguments as for `vllm`.

vLLM's command starts an engine, calls its `run_batch` once and ends. Here that same function is called for each line
`INPUT OUTPUT TIMES` on standard input, so that loading the engine is paid once and is in no figure. TIMES gets
`{"began", "ended", "cpu_s"}`: from the moment that it begins to read INPUT (its endpoints are set up) until OUTPUT is
written; CPU-seconds of it and its engine in between. BENCH_READY names a file that appears when the engine is loaded.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

import psutil
from vllm.entrypoints.cli.main import main
from vllm.entrypoints.launchers import run_batch
from vllm.entrypoints.launchers.api_server.entry import build_async_engine_client
from vllm.usage.usage_lib import UsageContext


def cpu_s() -> float:
    """CPU-seconds of this process and its children so far."""
    me = psutil.Process()
    return sum(sum(process.cpu_times()[:2]) for process in [me, *me.children(recursive=True)])


def watch(times: dict[str, float]) -> None:
    """Note when the input is read and the output written; both still do what they did."""
    read, write = run_batch.read_file, run_batch.write_file

    async def timed_read(*args: Any, **kwargs: Any) -> Any:
        times.update(began=time.monotonic(), cpu_s=-cpu_s())
        return await read(*args, **kwargs)

    async def timed_write(*args: Any, **kwargs: Any) -> Any:
        written = await write(*args, **kwargs)
        times.update(ended=time.monotonic(), cpu_s=times["cpu_s"] + cpu_s())
        return written

    run_batch.read_file, run_batch.write_file = timed_read, timed_write


def appear(name: str, text: str) -> None:
    """Write a file that is there whole or not at all."""
    partial = Path(name + ".partial")
    partial.write_text(text)
    partial.rename(name)


async def resident(args: Namespace) -> None:
    """As vLLM's own `run_batch.main`, for one input after the other."""
    times: dict[str, float] = {}
    watch(times)
    run_batch.validate_run_batch_args(args)
    async with build_async_engine_client(args, usage_context=UsageContext.OPENAI_BATCH_RUNNER) as client:
        appear(os.environ["BENCH_READY"], "")
        while order := await asyncio.to_thread(sys.stdin.readline):
            args.input_file, args.output_file, clock = order.split()
            await run_batch.run_batch(client, args)
            appear(clock, json.dumps(times))


# the guard matters: vLLM spawns its engine process, which imports this script again
if __name__ == "__main__":
    run_batch.main = resident
    sys.exit(main())
