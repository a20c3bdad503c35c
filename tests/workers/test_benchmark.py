"""The benchmarks of the worker run, at a size that measures nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_drivers_benchmark_runs_and_prints_one_object() -> None:
    command = [sys.executable, "-m", "benchmarks.worker", "driver", "--json"]
    tiny = ["--requests", "300", "--rounds", "1", "--concurrency", "8", "--tokens", "4"]
    ran = subprocess.run([*command, *tiny], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    told = json.loads(ran.stdout)
    assert told["requests"] == 300
    assert told["aiohttp_us"] > 0 and told["driver_us"] > 0 and told["ratio"] > 0
