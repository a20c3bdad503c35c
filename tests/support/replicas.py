"""Several real brokers on one PostgreSQL server, one object folder and one sandbox, behind one URL.

Each broker is in a network of its own, as on a machine of its own: what it talks to is reached over cables that can be cut.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import select
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil

from markets.sandbox.process import SandboxHandle, ensure_running
from tests.support.islands import Cable, Island, Sites
from tests.support.postgres_server import PostgresServer, postgres_server
from tests.support.wire import LOOPBACK, Wire

ROOT = Path(__file__).resolve().parents[2]
ENGINE = ROOT / "tests" / "support" / "scripted_engine.py"
MODEL = "scripted"
PATIENCE_S = 4.0
# Seconds alone on a core; they are for a loaded machine, and for one that starts while it is cut off or another is frozen.
START_S = 180
HEALTH_S = 5  # one that is paused or cut off answers nobody
PORT = 8000  # nobody else is in a broker's network

SETTINGS = """
markets = ["sandbox"]
database_url = "{database}"

[database]
leader_patience_s = {patience}

[http]
public_url = "{url}"

[sandbox]
url = "{sandbox}"
token = "{token}"

[jobs]
shard_lines = 20
part_lines = 5
part_seconds = 0.5
lease_ttl_s = 4

[control]
poll_s = 2
plan_s = 0.5
reconcile_s = 0.5
accrue_s = 0.5
finalise_s = 0.3
idle_release_s = 1
heartbeat_s = 0.5
create_grace_s = 20

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
granularity_s = 1
"""


class Replica:
    """One broker process with a data folder of its own, in the network `island`, listening at the far end of `front`."""

    def __init__(self, folder: Path, number: int, island: Island, front: Cable) -> None:
        self.folder, self.address = folder / f"replica{number}", (front.there, PORT)
        self._island = island
        self.log = self.folder / "broker.log"
        self.folder.mkdir()
        secret = self.folder / "kek"  # one key for all, as the operator would copy it
        secret.write_bytes(b"k" * 32)
        secret.chmod(0o600)
        (self.folder / "objects").symlink_to(folder / "objects")
        self.process: subprocess.Popen[bytes] | None = None
        self.told: dict[str, str] = {}

    @property
    def url(self) -> str:
        host, port = self.address
        return f"http://{host}:{port}"

    def start(
        self,
        environment: Mapping[str, str] | None = None,
        *,
        must_answer: bool = True,
        meanwhile: Callable[[], object] = lambda: None,
    ) -> None:
        """Start it (again). It answers when this returns, or has ended, where that is allowed. What it waits for may be ended
        by what is done `meanwhile`, again and again."""
        host, port = self.address
        serve = ("-m", "broker", "serve", "--data", str(self.folder), "--host", host, "--port", str(port))
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("BROKER_")}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self._island.command(sys.executable, *serve),
                cwd=ROOT,
                env={**inherited, **(environment or {})},
                stdout=subprocess.PIPE,
                stderr=log,
            )
        assert self.process.stdout
        give_up = time.monotonic() + START_S
        while not select.select([self.process.stdout], [], [], 0.1)[0]:
            meanwhile()
            if time.monotonic() > give_up:
                self.kill()
                raise AssertionError(f"the broker did not answer in {START_S} s: {self.log.read_text()[-3000:]}")
        first = self.process.stdout.readline()
        if not first:
            self.process.wait()
            assert not must_answer, f"the broker did not start: {self.log.read_text()[-3000:]}"
            return
        self.told = json.loads(first)

    def signal(self, number: signal.Signals) -> None:
        assert self.process
        self.process.send_signal(number)

    def kill(self) -> None:
        assert self.process
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """Its exit status after a SIGTERM; one that does not end in a minute is killed, and its status says so."""
        assert self.process
        self.process.send_signal(signal.SIGCONT)
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()

    @property
    def leads(self) -> bool:
        with suppress(OSError):
            return bool(json.loads(ask(self.url + "/healthz", "", timeout_s=HEALTH_S))["leads"])
        return False

    def events(self, name: str) -> list[dict[str, Any]]:
        """What it logged under this name."""
        lines = (json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{"))
        return [line for line in lines if line.get("event") == name]


class Replicas:
    """The brokers, and how a user and the provider see them."""

    def __init__(self, folder: Path, database: PostgresServer, count: int, *, latency: float) -> None:
        self.folder, self.database = folder, database
        (folder / "objects").mkdir()
        (folder / "catalogue.toml").write_text(CATALOGUE)
        self._sandbox: SandboxHandle = asyncio.run(
            ensure_running(folder / "sandbox", catalogue=folder / "catalogue.toml", idle_s=3600)
        )
        self._sites = Sites(count, ("front", "database", "sandbox"))
        self.cables = self._sites.cables
        sites = zip(self._sites.islands, self.cables["front"], strict=True)
        self.replicas = [Replica(folder, number, *site) for number, site in enumerate(sites)]
        self.front = Wire([replica.address for replica in self.replicas], health="/healthz")
        wanted = {"database": database.port, "sandbox": urlsplit(self._sandbox.url).port or 80}
        self._wires = {name: Wire([(LOOPBACK, port)], host=self._sites.address(name)) for name, port in wanted.items()}
        self.url, self.key = f"http://{LOOPBACK}:{self.front.port}", ""
        at = {name: f"{self._sites.address(name)}:{wire.port}" for name, wire in self._wires.items()}
        for replica in self.replicas:
            text = SETTINGS.format(
                database=f"postgresql://broker@{at['database']}/postgres",
                patience=PATIENCE_S,
                url=self.url,
                sandbox=f"http://{at['sandbox']}",
                token=self._sandbox.token,
                model=MODEL,
                python=sys.executable,
                engine=ENGINE,
                latency=latency,
                folder=folder,
            )
            (replica.folder / "broker.toml").write_text(text)

    def start(self) -> None:
        """All at once: they migrate, agree and make one admin key."""
        with ThreadPoolExecutor() as pool:
            list(pool.map(Replica.start, self.replicas))
        (self.key,) = (each.told["admin_key"] for each in self.replicas if "admin_key" in each.told)

    def leader(self) -> Replica:
        """The one that leads; waits for it."""
        found: Replica = self.until(
            "a broker leads", lambda: next((each for each in self.replicas if each.leads), None)
        )
        return found

    def other(self, than: Replica) -> Replica:
        return next(each for each in self.replicas if each is not than)

    def until(self, what: str, condition: Callable[[], Any], within_s: float = 120) -> Any:
        """Poll until `condition` gives something; fails with everybody's last words."""
        give_up = time.monotonic() + within_s
        while time.monotonic() < give_up:
            if found := condition():
                return found
            time.sleep(0.05)
        words = "\n".join(f"{each.folder.name}: {each.log.read_text()[-2500:]}" for each in self.replicas)
        raise AssertionError(f"not within {within_s} s: {what}\n{words}\n{self.database.sessions()}")

    def submit(self, lines: int) -> str:
        requests = [
            {
                "custom_id": f"line-{number}",
                "method": "POST",
                "url": "/v1/chat/completions",
                "body": {"model": MODEL, "max_tokens": 16, "messages": [{"role": "user", "content": f"say {number}"}]},
            }
            for number in range(lines)
        ]
        file_id = self.call("/v1/files", _form("\n".join(map(json.dumps, requests)).encode()), FORM)["id"]
        body = {"input_file_id": file_id, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
        return str(self.call("/v1/batches", json.dumps(body).encode())["id"])

    def call(self, path: str, body: bytes | None = None, kind: str = "application/json") -> Any:
        """As a patient client: what a broker that just died, or one without its database, does not answer is asked again.
        A batch may be asked for twice: the key makes it one."""
        return self.until(f"an answer to {path}", lambda: self._once(path, body, kind))

    def _once(self, path: str, body: bytes | None, kind: str) -> Any:
        try:
            return json.loads(ask(self.url + path, self.key, body, kind))
        except urllib.error.HTTPError as refused:
            if refused.code != 503:
                raise AssertionError(f"{path}: {refused.code} {refused.read()[:500]!r}") from refused
        except OSError:
            pass
        return None

    def batch(self, batch_id: str) -> dict[str, Any]:
        found: dict[str, Any] = self.call(f"/v1/batches/{batch_id}")
        return found

    def committed(self, batch_id: str) -> int:
        return int(self.batch(batch_id)["x_broker"]["counts"]["completed"])

    def ended(self, batch_id: str) -> dict[str, Any]:
        """The batch when it has ended, every machine is released, and the books are closed."""
        terminal = ("completed", "failed", "expired", "cancelled")
        self.until("the batch ends", lambda: self.batch(batch_id)["status"] in terminal)
        self.until("all machines are released", lambda: all(each["state"] == "ended" for each in self.machines()))
        self.until("the books are closed", lambda: self.call("/v1/ledger/entries?limit=1")["held_usd"] == "0")
        return self.batch(batch_id)

    def text(self, path: str) -> str:
        """The answer to GET as it is."""
        return ask(self.url + path, self.key)

    def sandbox(self, path: str) -> Any:
        """Ask the provider itself, past the brokers."""
        return json.loads(ask(self._sandbox.url + path, self._sandbox.token))

    def machines(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.sandbox("/v1/instances?limit=1000")["instances"]
        return found

    def close(self) -> list[int]:
        """The brokers' exit statuses."""
        self._sites.mend()
        statuses = [replica.stop() for replica in self.replicas if replica.process]
        for wire in (self.front, *self._wires.values()):
            wire.close()
        self._sites.close()
        with suppress(psutil.NoSuchProcess):
            sandbox = psutil.Process(self._sandbox.pid)
            sandbox.terminate()
            sandbox.wait(20)
        return statuses


@contextmanager
def replicas(folder: Path, count: int = 2, *, latency: float = 0.3) -> Iterator[Replicas]:
    with postgres_server() as database:
        running = Replicas(folder, database, count, latency=latency)
        try:
            running.start()
            yield running
        finally:
            statuses = running.close()
    assert set(statuses) == {0}, f"SIGTERM ended the brokers with statuses {statuses}"


FORM = "multipart/form-data; boundary=replicas"


def _form(content: bytes) -> bytes:
    fields = (
        '--replicas\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
        '--replicas\r\nContent-Disposition: form-data; name="file"; filename="in.jsonl"\r\n'
        "Content-Type: application/octet-stream\r\n\r\n"
    )
    return fields.encode() + content + b"\r\n--replicas--\r\n"


def ask(url: str, key: str, body: bytes | None = None, kind: str = "application/json", *, timeout_s: float = 20) -> str:
    """GET, or POST when there is a body."""
    request = urllib.request.Request(url, data=body, headers={"Authorization": f"Bearer {key}"})
    if body is not None:
        request.add_header("Content-Type", kind)
        request.add_header("Idempotency-Key", hashlib.sha256(body).hexdigest())
    with urllib.request.urlopen(request, timeout=timeout_s) as answer:
        text: str = answer.read().decode()
    return text
