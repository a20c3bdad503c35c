"""What a preemption costs: time until another machine works, work that is done twice, and the share that it wastes.

A real broker, a sandbox that rents processes, and scripted engines whose lines take a fixed time. In the middle of a batch
the sandbox takes the machine away: with a notice (`notice`), at once (`killed`), and at once in a broker that never cuts a
part before the end (`restart`: what is committed then begins again from the first line). Lines that the engines began,
by their own log, beyond those of the batch, are work that was lost.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

from tests.support.real_broker import RealBroker, real_broker

LINES = 100
LATENCY_S = 0.5
PART_SECONDS = 2.0
NOTICE_S = 20
NEVER = 1_000_000
MODES = ("notice", "killed", "restart")


def measure(rounds: int) -> dict[str, Any]:
    """All modes, interleaved; medians over the rounds."""
    found: dict[str, list[dict[str, float]]] = {mode: [] for mode in MODES}
    for _ in range(rounds):
        for mode in MODES:
            found[mode].append(_round(mode))
    medians = {
        mode: {name: round(statistics.median(each[name] for each in runs), 3) for name in runs[0]}
        for mode, runs in found.items()
    }
    settings = {"lines": LINES, "line_s": LATENCY_S, "part_s": PART_SECONDS, "notice_s": NOTICE_S, "rounds": rounds}
    return {**settings, **medians, "load": round(os.getloadavg()[0], 1)}


def _round(mode: str) -> dict[str, float]:
    cuts: dict[str, Any] = {"part_lines": NEVER, "part_seconds": NEVER if mode == "restart" else PART_SECONDS}
    with tempfile.TemporaryDirectory() as folder, real_broker(Path(folder), latency=LATENCY_S, **cuts) as broker:
        batch_id = broker.submit(LINES)
        broker.until("half is begun", lambda: broker.executions() >= LINES // 2, within_s=300)
        victim = next(machine for machine in broker.machines() if machine["state"] == "running")
        begun = broker.executions()
        first = set(_engines(broker))
        announced = time.monotonic()
        _preempt(broker, victim["id"], NOTICE_S if mode == "notice" else 0)
        broker.until("another engine works", lambda: set(_engines(broker)) - first, within_s=300)
        elsewhere_s = time.monotonic() - announced
        broker.until("it ends", lambda: broker.batch(batch_id)["status"] == "completed", within_s=300)
        executed = broker.executions()
        placements = broker.get(f"/v1/batches/{batch_id}/placements")["data"]
        saved = sum(each["lines"] for each in placements if each["rental"] == victim["tag"])
    lost = executed - LINES
    return {
        "first_token_elsewhere_s": elsewhere_s,
        "lines_begun_before": begun,
        "lines_saved": saved,
        "lines_lost": lost,
        "work_lost_s": lost * LATENCY_S / 4,  # four lines at a time
        "waste_share": lost / executed,
    }


def _engines(broker: RealBroker) -> list[str]:
    """The process ids that the engines' log names."""
    log = broker.folder / "executions.log"
    return [row.partition("\t")[0] for row in log.read_text().splitlines()] if log.exists() else []


def _preempt(broker: RealBroker, instance: str, notice_s: int) -> None:
    endpoint = json.loads((broker.data / "sandbox" / "endpoint.json").read_text())
    request = urllib.request.Request(
        f"{endpoint['url']}/v1/admin/instances/{instance}/preempt",
        data=json.dumps({"notice_s": notice_s}).encode(),
        headers={"Authorization": f"Bearer {endpoint['token']}", "Content-Type": "application/json"},
    )
    urllib.request.urlopen(request, timeout=20).close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="print one object (it is always printed)")
    print(json.dumps(measure(parser.parse_args().rounds)))


if __name__ == "__main__":
    main()
