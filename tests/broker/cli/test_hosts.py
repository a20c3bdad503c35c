"""`broker hosts`, as a command of its own process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.markets.own_hosts import SSHD, HostRig, host_in

ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("BROKER_")}


def hosts(data: Path, *more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "broker", "hosts", "--data", str(data), *more]
    return subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False, timeout=90)


def told(data: Path) -> Any:
    done = hosts(data, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def configured(data: Path, host: HostRig, **changes: str) -> Path:
    target = host.own.target
    fields = {"name": target.name, "address": target.address, "user": target.user, "host_key": target.host_key}
    fields |= {"usd_per_hour": "0.25", "country": "DE", "docker": host.own.docker.command} | changes
    data.mkdir(exist_ok=True)
    rows = [f"{name} = {json.dumps(value)}" for name, value in fields.items()]
    (data / "broker.toml").write_text("\n".join(["[[own.hosts]]", f"port = {target.port}", *rows]) + "\n")
    return data


def test_the_line_that_is_printed_is_all_that_a_host_needs_to_let_us_in(tmp_path: Path) -> None:
    if SSHD is None:
        pytest.skip("sshd is not installed (Debian: openssh-server)")
    with host_in(tmp_path / "host") as host:
        data = configured(tmp_path / "data", host)
        stranger = told(data)
        assert stranger["data"][0]["state"] == "NOT OK"
        assert stranger["trust_line"] in stranger["data"][0]["found"]
        (host.folder / "authorized_keys").write_text(stranger["trust_line"] + "\n")
        friend = told(data)
        assert friend["trust_line"] == stranger["trust_line"], "the authority is made once"
        assert (friend["data"][0]["state"], friend["data"][0]["found"]) == ("ok", "1 of 1 slots are free")
        shown = hosts(data).stdout.splitlines()
        assert shown[1].split("\t")[0] == "host-a" and shown[-1] == friend["trust_line"]
        wrong = hosts(configured(data, host, host_key="ssh-ed25519 nonsense"))
    assert wrong.returncode == 2 and "nonsense" in wrong.stderr, "a pinned key that cannot be read is named"


def test_hosts_can_be_prepared_before_there_is_a_broker_or_a_host(tmp_path: Path) -> None:
    first = told(tmp_path / "data")
    assert first["data"] == [] and first["trust_line"].startswith("cert-authority,restrict ssh-ed25519 ")
    assert (tmp_path / "data" / "ssh_authority").stat().st_mode & 0o077 == 0, "nobody else may read the authority"
