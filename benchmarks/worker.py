"""The worker's speed: `python -m benchmarks.worker driver|vllm --json`. Method: benchmarks/README.md and the modules."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from pathlib import Path

import platformdirs

from benchmarks import driver_cpu
from benchmarks.vllm_environment import VllmEnvironment
from benchmarks.vllm_pairs import VllmPairs


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.worker", description=__doc__)
    kinds = parser.add_subparsers(dest="kind", required=True)
    driver = kinds.add_parser("driver", help="CPU a request beside bare aiohttp")
    driver.add_argument("--requests", type=int, default=4000, help="a round")
    driver.add_argument("--rounds", type=int, default=11)
    driver.add_argument("--concurrency", type=int, default=64)
    driver.add_argument("--tokens", type=int, default=128, help="words of an answer")
    vllm = kinds.add_parser("vllm", help="tokens a second beside vllm run-batch; makes a vLLM of 3 GB on its first run")
    vllm.add_argument("--pairs", type=int, default=5)
    vllm.add_argument("--lines", type=int, default=160)
    vllm.add_argument("--tokens", type=int, default=64, help="of each answer")
    vllm.add_argument("--threads", type=int, default=1, help="of the engine (OpenMP)")
    vllm.add_argument("--part-seconds", type=float, default=5.0, help="between checkpoints; the broker's default is 30")
    vllm.add_argument("--state", type=Path, default=platformdirs.user_cache_path("compute-broker-ci") / "bench")
    for kind in (driver, vllm):
        kind.add_argument("--json", action="store_true", help="one JSON object (the only form there is)")
    given = parser.parse_args(argv)
    if given.kind == "driver":
        told = driver_cpu.run(given.requests, given.rounds, given.concurrency, given.tokens)
    else:
        environment = VllmEnvironment(given.state)
        environment.make()
        pairs = VllmPairs(environment, given.lines, given.tokens, given.threads, given.part_seconds)
        told = asyncio.run(pairs.measure(given.pairs))
    print(json.dumps(told))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
