"""One chaos world: a broker under a supervisor, a sandbox, agents with scripted engines, faults, and the reckoning."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import psutil
from chaos_schedule import Fault, Schedule

from tests.support.opened import opened_object

ROOT = Path(__file__).resolve().parents[2]
ENGINE = ROOT / "tests" / "support" / "scripted_engine.py"
MODEL = "chaos-model"
LEASE_TTL_S = 2.0
# Long enough that another has taken the frozen worker's shard over, short enough that it is still at it.
FROZEN_S = LEASE_TTL_S + 0.8
# The deadline is such that, if each line wrote all the tokens that it may, it would take so many machines; the engine
# writes 2 a line, so that there is time in plenty, and several machines to take over from each other.
ALLOWED_TOKENS, SPEED, MACHINES = 80, 20, 2.5
# A world that needs longer than this has lost something; it is measured as it stands.
WORLD_S = 180.0
# Each look is a request or two that a broker answers: three a second are 1 of the 20 CPU-seconds that a world takes, ten were 3.
LOOK_S = 0.3
MUTANT_WORLD_S = 60.0

CATALOGUE = """
[[offers]]
id = "steady"
country = "DE"
tier = "named_datacenter"
pricing = "spot"
price = "0.90"
capacity = 4
granularity_s = 1
"""

SETTINGS = """
markets = ["sandbox"]

[sandbox]
catalogue = "{catalogue}"

[jobs]
shard_lines = 20
part_lines = 4
part_seconds = 0.4
lease_ttl_s = {ttl}
max_attempts = 50

[control]
poll_s = 5
plan_s = {pace}
reconcile_s = {pace}
accrue_s = {pace}
finalise_s = 0.3
idle_release_s = 1
worker_silence_s = 12
heartbeat_s = 0.5
create_grace_s = 20
dead_man_s = 60

[models.{model}]
engine = "command"
argv = ["{python}", "{engine}", "--port", "{{port}}", "--latency", "0.3", "--model", "{model}"]
parallel = 3
load_s = 1
tokens_per_s = {{ cpu = [5000.0, {speed}.0] }}
endpoints = ["/v1/chat/completions"]
env = {{ HF_TOKEN = "{canary}" }}
"""
# The engine's own secret, which agents must have and nobody may write down; and a word of each prompt.
BOOKS_S = 30.0
CANARY, WHISPER = "hf_canaryCanaryCANARY", "whispered"


class World:
    """`run` lets the schedule happen, `measure` counts what is wrong, `end` leaves nothing behind. The control loops run
    every `pace_s`."""

    pace_s = 0.5

    def __init__(self, folder: Path, schedule: Schedule) -> None:
        self.folder, self.schedule = folder, schedule
        self.data = folder / "data"
        self.kills = 0
        # faults from outside by kind, as often as they were seen to strike; packets that outages have dropped
        self.struck: Counter[str] = Counter()
        self.dropped = 0
        self.notes: list[str] = []
        self._broker: subprocess.Popen[bytes] | None = None
        self._url = ""
        self._key = ""
        self._batch = ""
        self._points = [fault for fault in schedule.faults if fault.where in ("broker", "agent")]
        self._outside = sorted((f for f in schedule.faults if f.where in ("machine", "ground")), key=lambda f: f.after)
        self._frozen: list[tuple[float, int]] = []
        self._deadline = time.monotonic() + (MUTANT_WORLD_S if schedule.mutate else WORLD_S)

    # --- the story ---------------------------------------------------------------------------------------------------

    def run(self) -> None:
        self._write_settings()
        self._start_broker()
        if any(fault.where == "sandbox" for fault in self.schedule.faults):
            self._sandbox("POST", "/v1/admin/faults", {"name": "create_error_after"})
        self._submit()
        while time.monotonic() < self._deadline:
            self._keep_alive()
            self._thaw()
            state = self._state()
            if state is not None:
                self._disturb(state["x_broker"]["counts"]["completed"])
                if state["status"] in ("completed", "failed", "expired", "cancelled") and self._is_quiet():
                    return
            time.sleep(LOOK_S)
        self.notes.append("the world did not come to rest in time")

    def _write_settings(self) -> None:
        self.data.mkdir(parents=True)
        catalogue = self.folder / "catalogue.toml"
        catalogue.write_text(CATALOGUE)
        text = SETTINGS.format(
            catalogue=catalogue,
            ttl=LEASE_TTL_S,
            pace=self.pace_s,
            model=MODEL,
            speed=SPEED,
            python=sys.executable,
            engine=ENGINE,
            canary=CANARY,
        )
        (self.data / "broker.toml").write_text(text)

    def _start_broker(self) -> None:
        """Start it, with its next named point and the next agent's armed. Its first line says where it listens."""
        environment = {k: v for k, v in os.environ.items() if not k.startswith("BROKER_")} | self._armed()
        command = [sys.executable, "-m", "broker", "serve"]
        if self.schedule.mutate:
            command = [sys.executable, str(ROOT / "tests/system/mutant.py"), self.schedule.mutate, "serve"]
        with (self.folder / "broker.log").open("ab") as log:
            self._broker = subprocess.Popen(
                [*command, "--data", str(self.data), "--port", "0"],
                cwd=ROOT,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=log,
            )
        assert self._broker.stdout
        first = self._broker.stdout.readline()
        if not first:
            self._broker.wait()
            return  # it died at its failpoint before it was ready; the supervisor starts it again
        told = json.loads(first)
        self._url, self._key = told["url"], told.get("admin_key") or self._key

    def _armed(self) -> dict[str, str]:
        """The variables that arm the next named points, each of which is used once."""
        armed = {}
        for where, name in (("broker", "BROKER_FAILPOINT"), ("agent", "BROKER_AGENT_FAILPOINT")):
            fault = next((fault for fault in self._points if fault.where == where), None)
            if fault is not None:
                self._points.remove(fault)
                armed[name] = f"{fault.point}:{fault.n}"
        return armed

    def _keep_alive(self) -> None:
        """What a service manager does: a broker that was killed is started again."""
        assert self._broker
        if self._broker.poll() is None:
            return
        if self._broker.returncode == -signal.SIGKILL:
            self.kills += 1
        else:
            self.notes.append(f"broker exited with {self._broker.returncode}")
        self._start_broker()

    def _submit(self) -> None:
        lines = [
            json.dumps(
                {
                    "custom_id": f"line-{i}",
                    "method": "POST",
                    "url": "/v1/chat/completions",
                    "body": {
                        "model": MODEL,
                        "max_tokens": ALLOWED_TOKENS,
                        "messages": [{"role": "user", "content": f"say {i} {WHISPER}"}],
                    },
                }
            )
            for i in range(self.schedule.lines)
        ]
        file_id = self._retry(lambda: self._upload("\n".join(lines).encode()))["id"]
        wishes = {"deadline": int(time.time() + 15 + self.schedule.lines * ALLOWED_TOKENS / SPEED / MACHINES)}
        body = {
            "input_file_id": file_id,
            "endpoint": "/v1/chat/completions",
            "completion_window": "1h",
            "x_broker": wishes,
        }
        headers = {"Idempotency-Key": f"chaos-{self.schedule.seed}"}
        self._batch = self._retry(lambda: self._call("POST", "/v1/batches", body, headers))["id"]

    def _disturb(self, done: int) -> None:
        """Faults from outside, once enough lines are committed: a machine is struck when an agent is at work, the ground also
        when all lines were done before we had a look."""
        due = [fault for fault in self._outside if done >= fault.after]
        if fault := next((fault for fault in due if fault.where == "ground"), None):
            self._outside.remove(fault)
            self._shake(fault)
            self.kills += 1
        elif due and done < self.schedule.lines:
            machines = [m for m in self._machines() if m["state"] == "running" and m["pid"]]
            if any(self._strike(due[0], machine) for machine in machines):
                self._outside.remove(due[0])
                self.struck[due[0].kind] += 1
                self.kills += 1

    def _shake(self, fault: Fault) -> None:
        """What only a ground of several processes and wires can suffer."""
        raise NotImplementedError(f"{fault} on a ground of one process")

    def _strike(self, fault: Fault, machine: dict[str, Any]) -> bool:
        """Whether it was struck: it may have gone by itself since it was listed."""
        try:
            if fault.point == "preempt":
                self._sandbox("POST", f"/v1/admin/instances/{machine['id']}/preempt", {"notice_s": 0})
            elif fault.point == "freeze":
                os.kill(machine["pid"], signal.SIGSTOP)
                self._frozen.append((time.monotonic() + FROZEN_S, machine["pid"]))
            else:
                os.kill(machine["pid"], signal.SIGKILL)
        except (ProcessLookupError, urllib.error.HTTPError):
            return False
        return True

    def _thaw(self) -> None:
        for at, pid in list(self._frozen):
            if time.monotonic() >= at:
                self._frozen.remove((at, pid))
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)

    def _is_quiet(self) -> bool:
        """Ended, and nothing is rented any more: the books can be closed."""
        return not self._frozen and not any(m["state"] != "ended" for m in self._machines()) and self._all_settled()

    def _all_settled(self) -> bool:
        query = "select count(*) from markets_rental where not settled"
        return bool(self._rows(query)[0][0] == 0)

    # --- the reckoning -----------------------------------------------------------------------------------------------

    def measure(self) -> dict[str, int]:
        ledger = self._ledger_at_rest()
        self._stop_broker()
        answered = self._answers()
        wanted = {f"line-{i}" for i in range(self.schedule.lines)}
        lost = len(wanted - answered.keys())
        duplicated = sum(count - 1 for count in answered.values()) + self._counted_twice()
        leaked = self._leaks()
        mismatches = self._mismatches(ledger)
        found = {"lost": lost, "duplicated": duplicated, "leaked": leaked, "ledger_mismatches": mismatches}
        return found | {"secrets_leaked": self._secrets()}

    def _ledger_at_rest(self) -> dict[str, Any]:
        """The books once they agree with the invoice. What a broker that was cut off had begun is found by the next sweep,
        seconds later; what is booked wrongly stays wrong however often one looks."""
        give_up = time.monotonic() + (0 if self.schedule.mutate else BOOKS_S)
        while True:
            ledger, notes = self._ledger(), list(self.notes)
            wrong = self._mismatches(ledger)
            self.notes = notes  # told once, by who measures
            if not wrong or time.monotonic() > give_up:
                return ledger
            time.sleep(0.5)
            self._keep_alive()

    def _secrets(self) -> int:
        """Places in which a secret, or a prompt, was written down: logs of everybody, the database, stored objects."""
        endpoint = json.loads(self._endpoint().read_text())
        secrets = {word.encode() for word in (CANARY, self._key, endpoint["token"], *self._more_secrets())}
        places: list[tuple[str, bytes, set[bytes]]] = [
            (str(file), file.read_bytes(), secrets | {WHISPER.encode()}) for file in self.folder.rglob("*.log")
        ]
        places += [(f"database: {name}", dump, secrets | {WHISPER.encode()}) for name, dump in self._dump()]
        # they are sealed: no prompt stands in them, either
        places += [(name, content, secrets | {WHISPER.encode()}) for name, content in self._objects()]
        leaks = [where for where, content, words in places if any(word in content for word in words)]
        self.notes += [f"a secret or a prompt is in {where}" for where in leaks]
        return len(leaks)

    def _more_secrets(self) -> tuple[str, ...]:
        return ()

    def _kek(self) -> bytes:
        return (self.data / "kek").read_bytes()

    def _object(self, key: str) -> bytes:
        return (self.data / "objects" / key).read_bytes()

    def _objects(self) -> Iterator[tuple[str, bytes]]:
        for file in (self.data / "objects").rglob("*"):
            if file.is_file():
                yield str(file), file.read_bytes()

    def _dump(self) -> Iterator[tuple[str, bytes]]:
        """All that the database's files hold, also what was deleted and not yet overwritten."""
        for file in self.data.glob("broker.db*"):
            yield file.name, file.read_bytes()

    def _answers(self) -> Counter[str]:
        """custom_ids in the output and error files, read and opened as they lie in the object folder, not through the broker."""
        ids: Counter[str] = Counter()
        files = self._rows("select object_key from jobs_file where purpose = 'batch_output'")
        for (key,) in files:
            for line in opened_object(self._rows, self._kek(), key, self._object(key)).splitlines():
                ids[json.loads(line)["custom_id"]] += 1
        return ids

    def _counted_twice(self) -> int:
        """Lines that more than one counted part answers."""
        seen: Counter[int] = Counter()
        for (lines,) in self._rows("select lines from jobs_part where counted"):
            for start, stop in json.loads(lines) if isinstance(lines, str) else lines:
                seen.update(range(start, stop))
        return sum(count - 1 for count in seen.values())

    def _leaks(self) -> int:
        """Machines that the provider still runs, and processes of machines that are over."""
        live = {m["tag"] for m in self._machines() if m["state"] != "ended"}
        tags = {row[0] for row in self._rows("select id from markets_rental")} | live
        orphans = {tag for tag in map(_tag_of, psutil.process_iter()) if tag in tags}
        if live | orphans:
            self.notes.append(f"leaked: {sorted(live | orphans)}")
        return len(live | orphans)

    def _mismatches(self, ledger: dict[str, Any]) -> int:
        """Rentals whose net expense in the exported books is not what the provider's own log bills, and audit findings."""
        booked: dict[str, Decimal] = {}
        for row in csv.DictReader(ledger["csv"].splitlines()):
            if row["account"].startswith("Expenses:"):
                booked[row["rental"]] = booked.get(row["rental"], Decimal(0)) + Decimal(row["amount"])
        billed = {line["tag"]: Decimal(line["amount"]) for line in self._sandbox("GET", "/v1/invoices")["lines"]}
        wrong = [tag for tag in booked.keys() | billed.keys() if booked.get(tag, 0) != billed.get(tag, 0)]
        self.notes += [f"books {booked.get(tag)} invoice {billed.get(tag)} for {tag}" for tag in wrong]
        self.notes += ledger["findings"][:3]
        return len(wrong) + len(ledger["findings"])

    def _ledger(self) -> dict[str, Any]:
        self._keep_alive()
        found = self._retry(lambda: self._call("GET", "/v1/ledger/entries?limit=1"))
        return {
            "findings": found["findings"],
            "csv": self._retry(lambda: self._call("GET", "/v1/ledger/export.csv", raw=True)),
        }

    # --- the end -----------------------------------------------------------------------------------------------------

    def _stop_broker(self) -> None:
        assert self._broker
        self._broker.terminate()
        try:
            self._broker.wait(20)
        except subprocess.TimeoutExpired:
            self.notes.append("broker did not end within 20 s of SIGTERM")
            self._broker.kill()
            self._broker.wait()

    def end(self) -> None:
        """Whatever happened: no process of this world stays."""
        if self._broker and self._broker.poll() is None:
            self._broker.kill()
            self._broker.wait()
        if (self.data / "sandbox" / "endpoint.json").exists():
            try:
                self._sandbox("POST", "/v1/admin/shutdown", {"force": True})
            except OSError as gone:
                self.notes.append(f"sandbox at the end: {gone}")
        for process in psutil.process_iter():
            if str(self.folder) in _environment(process).get("BROKER_WORLD", "") or str(self.folder) in _folder(
                process
            ):
                process.kill()

    # --- talking -----------------------------------------------------------------------------------------------------

    def _state(self) -> dict[str, Any] | None:
        try:
            found: dict[str, Any] = self._call("GET", f"/v1/batches/{self._batch}")
        except OSError:
            return None  # it is being killed right now
        return found

    def _machines(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self._sandbox("GET", "/v1/instances?limit=1000")["instances"]
        return found

    def _sandbox(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        endpoint = json.loads(self._endpoint().read_text())
        return _http(method, endpoint["url"] + path, endpoint["token"], body)

    def _endpoint(self) -> Path:
        """Where the sandbox says that it listens; the broker starts it with its first poll."""
        file = self.data / "sandbox" / "endpoint.json"
        while not file.exists() and time.monotonic() < self._deadline:
            self._keep_alive()
            time.sleep(0.05)
        return file

    def _call(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None, raw: bool = False
    ) -> Any:
        return _http(method, self._url + path, self._key, body, headers, raw)

    def _upload(self, content: bytes) -> Any:
        boundary = "chaos-boundary"
        fields = (
            f'--{boundary}\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
            f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="in.jsonl"\r\n'
            "Content-Type: application/octet-stream\r\n\r\n"
        )
        body = fields.encode() + content + f"\r\n--{boundary}--\r\n".encode()
        headers = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
        return _http("POST", self._url + "/v1/files", self._key, body, headers)

    def _retry(self, call: Callable[[], Any]) -> Any:
        """A client's patience: the broker may be killed under any request."""
        while True:
            try:
                return call()
            except OSError as failure:
                if time.monotonic() > self._deadline + 30:
                    raise
                if isinstance(failure, urllib.error.HTTPError) and failure.code < 500:
                    raise
                time.sleep(0.1)
                self._keep_alive()

    def _rows(self, query: str) -> list[tuple[Any, ...]]:
        with sqlite3.connect(f"file:{self.data / 'broker.db'}?mode=ro", uri=True, timeout=30) as connection:
            return connection.execute(query).fetchall()


def _http(
    method: str, url: str, key: str, body: Any = None, headers: dict[str, str] | None = None, raw: bool = False
) -> Any:
    content = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data=content, method=method)
    request.add_header("Authorization", f"Bearer {key}")
    if content is not None:
        request.add_header("Content-Type", "application/json")
    for name, value in (headers or {}).items():
        request.add_header(name, value)
    with urllib.request.urlopen(request, timeout=20) as answer:
        text = answer.read()
    return text.decode() if raw else json.loads(text)


def _environment(process: psutil.Process) -> dict[str, str]:
    try:
        return process.environ()
    except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
        return {}


def _tag_of(process: psutil.Process) -> str | None:
    return _environment(process).get("BROKER_RENTAL_TAG")


def _folder(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
        return ""
