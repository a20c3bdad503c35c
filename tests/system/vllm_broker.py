"""The broker of the vLLM stage: settings that name two own hosts, a real `broker serve`, and the stock openai client."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import openai

from tests.system.hosts.host import Host

MODEL = "tiny"
ROOT = Path(__file__).resolve().parents[2]

# Short beats, so that a vanished host is given up within seconds; the product's defaults take a minute.
SETTINGS = """
markets = ["hosts"]

[jobs]
part_lines = 10
part_seconds = 2
lease_ttl_s = 20

[control]
poll_s = 5
plan_s = 2
reconcile_s = 2
accrue_s = 2
heartbeat_s = 2
worker_silence_s = 20
idle_release_s = 20
dead_man_s = 300

[models.{model}]
engine = "vllm"
weights = "{weights}"
image = "{image}"
entrypoint = ["python3"]
shm_mib = 256
context = 1024
parallel = {parallel}
launches = ["container"]
load_s = 30
tokens_per_s = {{ cpu = [4000.0, 1500.0] }}

[models.{model}.profiles.ci]
eager = true
max_num_seqs = {parallel}
prefix_caching = true
"""
HOST = """
[[own.hosts]]
name = "{name}"
address = "127.0.0.1"
port = {port}
user = "root"
host_key = "{host_key}"
usd_per_hour = "{price}"
country = "DE"
slots = 1
"""


class Broker:
    """One broker on the folder `data`; its log is beside it."""

    def __init__(self, data: Path) -> None:
        self.data = data
        self.log = data.with_suffix(".log")
        # what a developer's shell has set must not reach the broker
        self.environment = {name: text for name, text in os.environ.items() if not name.startswith("BROKER_")}
        self._process: subprocess.Popen[bytes] | None = None
        self._url = ""
        self._key = ""

    def configure(self, hosts: Sequence[tuple[Host, Decimal]], *, image: str, weights: str, parallel: int) -> None:
        """Write broker.toml: these hosts at these prices, and the tiny model out of the image."""
        self.data.mkdir(parents=True)
        text = SETTINGS.format(model=MODEL, image=image, weights=weights, parallel=parallel)
        for host, price in hosts:
            text += HOST.format(name=host.name, port=host.port, host_key=host.host_key, price=price)
        (self.data / "broker.toml").write_text(text)

    def command(self, *arguments: str) -> Any:
        """What `broker COMMAND --json` prints for this data folder."""
        command = [sys.executable, "-m", "broker", *arguments, "--json", "--data", str(self.data)]
        done = subprocess.run(
            command, cwd=ROOT, env=self.environment, capture_output=True, text=True, check=False, timeout=120
        )
        if done.returncode != 0:
            raise AssertionError(f"broker {' '.join(arguments)} exited with {done.returncode}: {done.stderr[-2000:]}")
        return json.loads(done.stdout)

    def start(self) -> None:
        """Serve; returns when the first line says where."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "broker", "serve", "--data", str(self.data), "--port", "0"],
                cwd=ROOT,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
            )
        assert self._process.stdout is not None
        first = self._process.stdout.readline()
        if not first:
            raise AssertionError(f"broker serve said nothing: {self.tail()}")
        told = json.loads(first)
        self._url, self._key = told["url"], told["admin_key"]

    def stop(self) -> int | None:
        """SIGTERM, SIGKILL after 20 s; its exit status, None when it was never started."""
        if self._process is None:
            return None
        self._process.terminate()
        try:
            return self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()

    def tail(self, rows: int = 40) -> str:
        """The end of the log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-rows:]) if self.log.exists() else ""

    def client(self) -> openai.OpenAI:
        """The stock client; only its base URL says that this is not OpenAI."""
        return openai.OpenAI(base_url=f"{self._url}/v1", api_key=self._key, max_retries=5)

    def get(self, path: str) -> Any:
        """A JSON document of the broker's own API."""
        return json.loads(self._get(path))

    def spent(self) -> dict[str, Decimal]:
        """USD by rental: the expense accounts in the exported books."""
        booked: dict[str, Decimal] = {}
        for row in csv.DictReader(self._get("/v1/ledger/export.csv").decode().splitlines()):
            if row["account"].lstrip("'").startswith("Expenses:"):
                booked[row["rental"]] = booked.get(row["rental"], Decimal(0)) + Decimal(row["amount"].lstrip("'"))
        return booked

    def _get(self, path: str) -> bytes:
        request = urllib.request.Request(self._url + path, headers={"Authorization": f"Bearer {self._key}"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            content: bytes = answer.read()
        return content
