"""The worker's speed: `python -m benchmarks.worker driver|vllm --json`. Method: benchmarks/README.md and the modules."""

from __future__ import annotations

import argparse
import json
import sys

from benchmarks import driver_cpu


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.worker", description=__doc__)
    kinds = parser.add_subparsers(dest="kind", required=True)
    driver = kinds.add_parser("driver", help="CPU a request beside bare aiohttp")
    driver.add_argument("--requests", type=int, default=4000, help="a round")
    driver.add_argument("--rounds", type=int, default=11)
    driver.add_argument("--concurrency", type=int, default=64)
    driver.add_argument("--tokens", type=int, default=128, help="words of an answer")
    for kind in (driver,):
        kind.add_argument("--json", action="store_true", help="one JSON object (the only form there is)")
    given = parser.parse_args(argv)
    print(json.dumps(driver_cpu.run(given.requests, given.rounds, given.concurrency, given.tokens)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
