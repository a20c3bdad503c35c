"""`vllm run-batch` unchanged, with two clocks on it: run with the vLLM environment's Python, arguments as for vllm.

BENCH_TIMES names the file that gets `{"began", "ended", "cpu_s"}`: from the moment that it begins to read its input (the
engine is loaded, the endpoints are set up) until its output is written; CPU-seconds of it and its engine in between.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import psutil
from vllm.entrypoints.cli.main import main
from vllm.entrypoints.launchers import run_batch


def cpu_s() -> float:
    """CPU-seconds of this process and its children so far."""
    me = psutil.Process()
    return sum(sum(process.cpu_times()[:2]) for process in [me, *me.children(recursive=True)])


def note(times: dict[str, float]) -> None:
    """Leave the figures for whoever started this."""
    Path(os.environ["BENCH_TIMES"]).write_text(json.dumps(times))


def watch() -> None:
    """Note when the input is read and the output written; both still do what they did."""
    read, write = run_batch.read_file, run_batch.write_file
    times: dict[str, float] = {}

    async def timed_read(*args: Any, **kwargs: Any) -> Any:
        times.update(began=time.monotonic(), cpu_s=-cpu_s())
        return await read(*args, **kwargs)

    async def timed_write(*args: Any, **kwargs: Any) -> Any:
        written = await write(*args, **kwargs)
        times.update(ended=time.monotonic(), cpu_s=times["cpu_s"] + cpu_s())
        note(times)
        return written

    run_batch.read_file, run_batch.write_file = timed_read, timed_write


# the guard matters: vLLM spawns its engine process, which imports this script again
if __name__ == "__main__":
    watch()
    sys.exit(main())
