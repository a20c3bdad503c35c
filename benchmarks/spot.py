"""Spot under a deadline, over many recorded pools: each policy's cost beside hindsight, by work, deadline and restart.

The mix of the research that the targets come from: 8 h of work in 10 and 16 h, 24 h in 28 and 48 h, 48 h in 70 h, spot at a
quarter of on-demand, restarts of 3 and 15 minutes, random starts in each record, the policy fitted to seven days before each. The
traces have no licence to copy: give the folder that they are in. `--tick-s 450` looks at them only every 7.5 minutes, as the
research did; without it they are replayed as recorded.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from solver.backtest import run, traces
from solver.backtest.errors import BadTrace
from solver.backtest.traces import Trace
from solver.spot.world import Job, Pools

MIX = ((8, 10), (8, 16), (24, 28), (24, 48), (48, 70))
RESTARTS_MIN = (3, 15)
POOLS = Pools((0.25,), 1.0)
POLICIES = ("broker", "last-moment", "greedy", "uniform-progress")


def measure(
    records: Sequence[Trace], starts: int, restarts: Sequence[float], mix: Sequence[tuple[int, int]], history_s: float
) -> dict[str, Any]:
    """Cost over hindsight of each policy: in each cell the ratio of the sums over its runs, and the mean of the cells."""
    began, cells, runs = time.process_time(), [], 0
    for restart_min in restarts:
        for work_h, deadline_h in mix:
            job = Job(work_h * 3600.0, deadline_h * 3600.0, restart_min * 60.0)
            worlds = [((record,), POOLS) for record in records if _has_room(record, job, history_s)]
            results, rows = run.backtest(worlds, job, POLICIES, starts)
            runs += len(rows) // len(POLICIES)
            cells.append(
                {
                    "restart_min": restart_min,
                    "work_h": work_h,
                    "deadline_h": deadline_h,
                    "traces": len(worlds),
                    "missed": sum(each.missed for each in results),
                    **{each.policy: each.cost_over_clairvoyant for each in results},
                }
            )
    means = {
        f"{restart_min}": {
            policy: round(float(np.mean([cell[policy] for cell in cells if cell["restart_min"] == restart_min])), 4)
            for policy in POLICIES
        }
        for restart_min in restarts
    }
    return {
        "runs": runs,
        "cells": cells,
        "mean_by_restart_min": means,
        "missed": sum(cell["missed"] for cell in cells),
        "cpu_s": round(time.process_time() - began, 1),
        "load": round(os.getloadavg()[0], 1),
    }


def coarser(record: Trace, tick_s: float) -> Trace:
    """The record as one sees it who looks every `tick_s`; a record of longer ticks stays as it is."""
    if tick_s <= record.tick_s:
        return record
    looks = np.arange(0, len(record.is_up) - 1e-9, tick_s / record.tick_s).astype(int)
    return replace(record, tick_s=tick_s, is_up=record.is_up[looks], is_known=record.is_known[looks])


def _has_room(record: Trace, job: Job, history_s: float) -> bool:
    """Whether the job fits behind so much history; else the backtest takes half of what there is as history."""
    if len(record.is_up) * record.tick_s < history_s + job.deadline_s:
        return False
    try:
        run.starts([record], job, 1)
    except BadTrace:
        return False
    return True


def _read(folder: Path, tick_s: float) -> list[Trace]:
    found = [traces.read(str(path), path.read_bytes()) for path in sorted(folder.rglob("*.json"))]
    return [coarser(record, tick_s) for record in found]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--traces", type=Path, required=True, help="folder of the traces (.json), searched to its bottom"
    )
    parser.add_argument("--starts", type=int, default=3, help="random starts a trace and cell")
    parser.add_argument("--tick-s", type=float, default=0.0, help="look at the records only so often")
    parser.add_argument(
        "--history-days", type=float, default=0.0, help="leave out records too short for so much before a start"
    )
    parser.add_argument("--restarts", type=float, nargs="+", default=RESTARTS_MIN, help="minutes")
    parser.add_argument("--json", action="store_true", help="print one object (it is always printed)")
    asked = parser.parse_args()
    print(
        json.dumps(
            measure(_read(asked.traces, asked.tick_s), asked.starts, asked.restarts, MIX, asked.history_days * 86_400)
        )
    )


if __name__ == "__main__":
    main()
