"""The kill: SIGKILL to one worker of the demonstration's own, at a moment when it has lines in flight."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

Document = dict[str, Any]

# Late enough that there is something to lose and to keep, early enough that there is something left to do.
FROM_SHARE, UNTIL_SHARE = 0.4, 0.85
TAG = "BROKER_RENTAL_TAG"


class Assassin:
    """Looks at the batch as it runs, kills once, and says so."""

    def __init__(self, data: Path) -> None:
        self._data = data
        self.killed: str | None = None

    def look(self, batch: Document, placements: Sequence[Document]) -> str | None:
        if self.killed is not None or not is_halfway(batch):
            return None
        for placement in placements:
            process = worker_process(placement, self._data)
            if process is not None:
                process.send_signal(signal.SIGKILL)
                self.killed = placement["rental"]
                done = batch["x_broker"]["counts"]["completed"]
                return (
                    f"--- SIGKILL to worker pid {process.pid} ({placement['market']} {placement['country']}, "
                    f"{placement['rental']}) with {done} of {batch['x_broker']['counts']['total']} lines committed ---"
                )
        return None


def is_halfway(batch: Document) -> bool:
    """Whether enough lines are committed, and enough are not, for a kill to mean something."""
    counts = batch["x_broker"]["counts"]
    return bool(counts["total"]) and FROM_SHARE <= counts["completed"] / counts["total"] <= UNTIL_SHARE


def worker_process(placement: Document, data: Path) -> psutil.Process | None:
    """The placement's worker process, if it is ready and really one of the machines below `data`.

    The pid comes from the market; a pid alone could by now be anybody's. It counts only when that process carries the
    rental's tag in its environment and works below our folder.
    """
    pid = placement["facts"].get("pid")
    if placement["state"] != "running" or placement["worker"] != "ready" or not pid:
        return None
    try:
        process = psutil.Process(int(pid))
        ours = process.environ().get(TAG) == placement["rental"] and Path(process.cwd()).is_relative_to(data)
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return None
    return process if ours else None


def end_leftovers(data: Path, within_s: float = 5.0) -> list[int]:
    """End what still runs of this demonstration: machines below `data`, and its sandbox; their pids.

    After a run that went well there is only the sandbox, which by design outlives the broker.
    """
    found = [process for process in psutil.process_iter() if _is_ours(process, data)]
    for process in found:
        _signal(process, signal.SIGTERM)
    _, stubborn = psutil.wait_procs(found, timeout=within_s)
    for process in stubborn:
        _signal(process, signal.SIGKILL)
    psutil.wait_procs(stubborn, timeout=within_s)
    return [process.pid for process in found]


def _is_ours(process: psutil.Process, data: Path) -> bool:
    try:
        if TAG in process.environ() and Path(process.cwd()).is_relative_to(data):
            return True
        arguments = process.cmdline()
        return "markets.sandbox" in arguments and any(Path(each).is_relative_to(data) for each in arguments)
    except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
        return False


def _signal(process: psutil.Process, number: signal.Signals) -> None:
    try:
        process.send_signal(number)
    except psutil.NoSuchProcess:
        return  # it ended by itself, which is what was wanted
