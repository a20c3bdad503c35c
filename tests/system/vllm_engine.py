"""What the engines and the hosts themselves say: vLLM's counters, docker's record of a container. Nothing of ours."""

from __future__ import annotations

import json
import subprocess
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import ROUND_HALF_EVEN, Decimal
from pathlib import Path
from typing import Any

from tests.system.hosts.host import Host

# one observation for each prompt that was computed, whatever became of its answer
PROMPTS = "vllm:time_to_first_token_seconds_count"


@dataclass
class Worker:
    """The container `tag` on `host`. `prompts` is the highest count of its engine that was ever read."""

    host: Host
    tag: str
    prompts: int = 0
    _port: int | None = field(default=None, repr=False)

    def read(self) -> bool:
        """Ask the engine for its counter; False while it does not answer."""
        port = self._port = self._port or self._find_port()
        if port is None:
            return False
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=20) as answer:
                text = answer.read().decode()
        except (urllib.error.URLError, OSError):
            return False
        counts = [float(row.rsplit(" ", 1)[1]) for row in text.splitlines() if row.startswith(PROMPTS)]
        self.prompts = max(self.prompts, round(sum(counts)))
        return bool(counts)

    def inspect(self) -> dict[str, Any]:
        """Docker's word on the container, while the engine has it."""
        found: list[dict[str, Any]] = json.loads(self.host.docker("inspect", self.tag))
        return found[0]

    def logs(self) -> str:
        """What the agent in the container wrote."""
        command = ["docker", "-H", self.host.docker_host, "logs", "--tail", "500", self.tag]
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, timeout=60
        )
        return done.stdout

    def _find_port(self) -> int | None:
        """The port that the agent gave its newest engine."""
        for row in reversed(self.logs().splitlines()):
            if '"engine.started"' in row:
                return int(json.loads(row)["port"])
        return None


def worker_on(host: Host) -> Worker | None:
    """The worker's container that runs on this host now."""
    names = host.docker("ps", "--filter", "label=broker.tag", "--format", "{{.Names}}").split()
    return Worker(host, names[0]) if names else None


def cost(record: dict[str, Any], usd_per_hour: Decimal) -> Decimal:
    """USD by docker's own times: begun seconds at the hourly price, rounded once to a nano-dollar."""
    elapsed = _time(record["State"]["FinishedAt"]) - _time(record["State"]["StartedAt"])
    seconds = -(-elapsed // timedelta(seconds=1))
    return (usd_per_hour * seconds / 3600).quantize(Decimal("1e-9"), rounding=ROUND_HALF_EVEN)


def kept_record(host: Host, tag: str) -> dict[str, Any] | None:
    """Docker's last word on a container that was removed, as it lies on the host's disk."""
    file = host.folder / "home" / ".broker" / tag / "end.json"
    if not file.exists():
        return None
    found: list[dict[str, Any]] = json.loads(file.read_text())
    return found[0]


def forget(home: Path) -> None:
    """Remove the records of containers of earlier runs: a host's home outlives them."""
    subprocess.run(["rm", "-rf", str(home / ".broker")], check=True)


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text).astimezone(UTC)
