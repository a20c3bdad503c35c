"""A real broker as a separate process, with a sandbox of its own and scripted engines, for tests of whole flows."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import psutil

ROOT = Path(__file__).resolve().parents[2]
ENGINE = ROOT / "tests" / "support" / "scripted_engine.py"
MODEL = "scripted"

SETTINGS = """
markets = ["sandbox"]

[sandbox]
catalogue = "{folder}/catalogue.toml"

[jobs]
shard_lines = 100
part_lines = {part_lines}
part_seconds = {part_seconds}
lease_ttl_s = 4

[control]
poll_s = 2
plan_s = 0.5
reconcile_s = 0.5
accrue_s = 0.5
finalise_s = 0.3
idle_release_s = 1
heartbeat_s = 0.5

[models.{model}]
engine = "command"
revision = "1"
argv = ["{python}", "{engine}", "--port", "{{port}}", "--latency", "{latency}", "--log", "{folder}/executions.log"]
parallel = 4
load_s = 1
tokens_per_s = {{ cpu = [5000.0, 50.0] }}
endpoints = ["/v1/chat/completions"]
"""

CATALOGUE = """
[[offers]]
id = "germany"
country = "DE"
tier = "named_datacenter"
pricing = "spot"
price = "0.90"
capacity = 4

[[offers]]
id = "america"
country = "US"
tier = "named_datacenter"
pricing = "spot"
price = "1.10"
capacity = 4
"""


class RealBroker:
    """`url`, `key` and the unmodified `openai` client of a broker in `folder`; `also` is appended to its settings."""

    def __init__(
        self,
        folder: Path,
        *,
        latency: float = 0.2,
        restored: Path | None = None,
        settings: str = "",
        also: str = "",
        part_lines: int = 6,
        part_seconds: float = 1,
    ) -> None:
        """`restored` is a data folder that is there already; `settings` come before the others in broker.toml."""
        self.folder, self.data = folder, restored or folder / "data"
        if restored is None:
            self.data.mkdir()
            (folder / "catalogue.toml").write_text(CATALOGUE)
            text = SETTINGS.format(
                folder=folder,
                model=MODEL,
                python=sys.executable,
                engine=ENGINE,
                latency=latency,
                part_lines=part_lines,
                part_seconds=part_seconds,
            )
            (self.data / "broker.toml").write_text(settings + text + also)
        key = self.data / "admin.key"
        self.url, self.key = "", key.read_text().strip() if key.exists() else ""
        self._process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("BROKER_")}
        with (self.folder / "broker.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "broker", "serve", "--data", str(self.data), "--port", self._port()],
                cwd=ROOT,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=log,
            )
        assert process.stdout
        told = json.loads(process.stdout.readline())
        self.url, self.key = told["url"], told.get("admin_key") or self.key
        # with TLS, commands on this machine have a plain way of their own: the certificate is for others
        self.local = json.loads((self.data / "broker.lock").read_text())["url"]
        self.openai = openai.OpenAI(base_url=f"{self.local}/v1", api_key=self.key)
        return process

    @property
    def pid(self) -> int:
        return self._process.pid

    def _port(self) -> str:
        """A free one at first, then the same: the machines out there know it."""
        return self.url.rpartition(":")[2] or "0"

    def restart(self) -> None:
        """End it cleanly and start it again on the same folder and port."""
        self._process.send_signal(signal.SIGTERM)
        assert self._process.wait(30) == 0
        self._process = self._start()

    def submit(self, lines: int, *, max_tokens: int = 16, prompt: str = "say", **wishes: Any) -> str:
        """A batch of so many chat requests with custom_ids `line-0` …; its id."""
        batch = self.openai.batches.create(
            input_file_id=self.upload(lines, max_tokens, prompt),
            endpoint="/v1/chat/completions",
            completion_window="24h",
            extra_body={"x_broker": wishes},
        )
        return batch.id

    def quote(self, lines: int, **wishes: Any) -> dict[str, Any]:
        """What such a batch would cost and where it would run."""
        body = {"input_file_id": self.upload(lines, 16), "x_broker": wishes}
        found: dict[str, Any] = json.loads(_ask(self.local + "/v1/quotes", self.key, body))
        return found

    def upload(self, lines: int, max_tokens: int, prompt: str = "say") -> str:
        requests = [
            {
                "custom_id": f"line-{i}",
                "method": "POST",
                "url": "/v1/chat/completions",
                "body": {
                    "model": MODEL,
                    "max_tokens": max_tokens,
                    "messages": [{"role": "user", "content": f"{prompt} {i}"}],
                },
            }
            for i in range(lines)
        ]
        content = "\n".join(json.dumps(request) for request in requests).encode()
        return self.openai.files.create(file=("in.jsonl", content), purpose="batch").id

    def batch(self, batch_id: str) -> dict[str, Any]:
        return self.openai.batches.retrieve(batch_id).model_dump()

    def until(self, what: str, condition: Callable[[], Any], within_s: float = 90) -> Any:
        """Poll until `condition` gives something; fails with the broker's last words."""
        deadline = time.monotonic() + within_s
        while time.monotonic() < deadline:
            if found := condition():
                return found
            time.sleep(0.05)
        log = (self.folder / "broker.log").read_text()[-3000:]
        raise AssertionError(f"not within {within_s} s: {what}\n{log}")

    def ended(self, batch_id: str) -> dict[str, Any]:
        """The batch when it has ended and every machine is released and booked to the end."""
        terminal = ("completed", "failed", "expired", "cancelled")
        self.until("the batch ends", lambda: self.batch(batch_id)["status"] in terminal)
        self.until("all machines are released", lambda: all(m["state"] == "ended" for m in self.machines()))
        self.until("the books are closed", lambda: self.get("/v1/ledger/entries?limit=1")["held_usd"] == "0")
        return self.batch(batch_id)

    def get(self, path: str) -> Any:
        return json.loads(self.text(path))

    def text(self, path: str) -> str:
        return _ask(self.local + path, self.key)

    def sandbox(self, path: str) -> Any:
        """Ask the provider itself, past the broker."""
        endpoint = json.loads((self.data / "sandbox" / "endpoint.json").read_text())
        return json.loads(_ask(endpoint["url"] + path, endpoint["token"]))

    def machines(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.sandbox("/v1/instances?limit=1000")["instances"]
        return found

    def executions(self) -> int:
        """How many prompts the engines have begun, by their own count."""
        log = self.folder / "executions.log"
        return len(log.read_text().splitlines()) if log.exists() else 0

    def engines(self) -> list[psutil.Process]:
        """Of the machines that it rented."""
        return [each for each in self._started() if str(ENGINE) in each.cmdline()]

    def destroy(self) -> None:
        """The machine room burns down: broker, provider and machines at once, and the data folder with them."""
        for each in self._started():
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()
        self._process.wait()
        assert self._process.stdout
        self._process.stdout.close()
        shutil.rmtree(self.data)

    def _started(self) -> list[psutil.Process]:
        """Every process that was told of our folder on its command line: none of anybody else's is."""
        mine = f"{self.folder}/"
        found = psutil.process_iter(["cmdline"])
        return [each for each in found if any(mine in word for word in each.info["cmdline"] or ())]

    def stop(self) -> int:
        self._process.send_signal(signal.SIGTERM)
        try:
            return self._process.wait(30)
        finally:
            self._process.kill()
            self._end_sandbox()

    def _end_sandbox(self) -> None:
        endpoint = self.data / "sandbox" / "endpoint.json"
        with contextlib.suppress(FileNotFoundError, psutil.NoSuchProcess):
            sandbox = psutil.Process(json.loads(endpoint.read_text())["pid"])
            if str(self.data) in " ".join(sandbox.cmdline()):
                sandbox.terminate()
                sandbox.wait(20)


@contextlib.contextmanager
def real_broker(folder: Path, **options: Any) -> Iterator[RealBroker]:
    """`options` are those of RealBroker."""
    broker = RealBroker(folder, **options)
    try:
        yield broker
    finally:
        status = broker.stop()
    assert status == 0, f"SIGTERM ended the broker with status {status}"


def _ask(url: str, key: str, body: Any = None) -> str:
    """GET, or POST when there is a body."""
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {key}"})
    if body is not None:
        request.data = json.dumps(body).encode()
        request.add_header("Content-Type", "application/json")
    with urllib.request.urlopen(request, timeout=20) as answer:
        text: str = answer.read().decode()
    return text
