"""What a CPU-second is worth on this machine right now: a fixed linear program and a fixed JSON loop (contract C17).

Other benchmarks run this in their own process group and report their figures raw and divided by it.
"""

from __future__ import annotations

import json
import random
import sys
import time

import pulp


def linear_program() -> float:
    """CPU-seconds to build and solve 150 works on 40 offers: dense, continuous, the same each time."""
    source = random.Random(7)
    began = time.process_time()
    problem = pulp.LpProblem("calibrate", pulp.LpMinimize)
    share = [[problem.add_variable(f"x_{k}_{o}", 0) for o in range(40)] for k in range(150)]
    problem += pulp.lpSum(source.uniform(1, 9) * x for row in share for x in row)
    for row in share:
        problem += pulp.lpSum(row) == 1
    for o in range(40):
        problem += pulp.lpSum(row[o] for row in share) <= 6
    problem.solve(pulp.HiGHS(msg=False, threads=1))
    return time.process_time() - began


def json_loop() -> float:
    """CPU-seconds to write and read a chat request 40,000 times."""
    body = {"custom_id": "line-1", "body": {"model": "m", "messages": [{"role": "user", "content": "x" * 400}]}}
    began = time.process_time()
    for _ in range(40_000):
        json.loads(json.dumps(body))
    return time.process_time() - began


def calibrate() -> dict[str, float]:
    """The better of three of each: the least disturbed."""
    return {
        "lp_cpu_s": min(linear_program() for _ in range(3)),
        "json_cpu_s": min(json_loop() for _ in range(3)),
    }


if __name__ == "__main__":
    print(json.dumps({name: round(value, 4) for name, value in calibrate().items()}))
    sys.exit(0)
