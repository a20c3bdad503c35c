"""What a command loads before it does anything: people wait for that at each command."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import typer

from broker import client_settings, settings
from broker.cli.configuration import load_client
from broker.cli.exits import ERROR, USAGE, Failure
from broker.cli.main import OWN_WORK, app
from tests.broker.cli.test_help import commands
from tests.support.command_line import ENVIRONMENT, broker, quick

RUN = "import sys; from broker.cli.main import run\ntry: run()\nfinally: print(*sys.modules, file=sys.stderr)"
ROOMS = {"jobs", "ledger", "markets", "solver", "workers"}
# What serves, plans and keeps books; rich draws on terminals, and structlog brings it along.
HEAVY = {"alembic", "apscheduler", "cryptography", "highspy", "msgspec", "numpy", "paramiko", "pulp", "pydantic_settings",
         "rich", "sqlalchemy", "sqlmodel", "structlog"} | ROOMS  # fmt: skip


def loaded(*arguments: str, data: Path) -> set[str]:
    """The packages that a command has imported when it ends."""
    done = subprocess.run(
        [sys.executable, "-c", RUN, *arguments], env=ENVIRONMENT | {"BROKER_DATA": str(data)},
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    return {name.partition(".")[0] for name in done.stderr.splitlines()[-1].split()}


def test_help_waits_for_no_library_but_the_command_lines_own(tmp_path: Path) -> None:
    assert loaded("--help", data=tmp_path) & (HEAVY | {"aiohttp", "psutil", "pydantic"}) == set()


def test_a_command_that_asks_a_broker_loads_none_of_what_a_broker_needs(tmp_path: Path) -> None:
    found = loaded("status", "batch_1", "--url", "http://127.0.0.1:9", data=tmp_path)
    assert "aiohttp" in found, "it asked"
    assert found & HEAVY == set()


def test_a_command_that_asks_no_broker_tells_its_events_on_standard_error() -> None:
    """Unless it is told where, structlog writes to standard output, into the JSON that a script reads."""
    root = typer.main.get_command(app)
    asking_none = {path[0] for path, command in commands(root) if "url" not in {each.name for each in command.params}}
    groups = {name for name, command in root.commands.items() if hasattr(command, "commands")}  # type: ignore[attr-defined]
    assert asking_none - groups <= OWN_WORK | {"completion"}
    assert "models" in OWN_WORK, "of its group, `fetch` asks none"


@pytest.mark.parametrize(
    ("environment", "file"),
    [
        ({}, ""),
        ({}, 'url = "http://file"\napi_key = "brk_file"\nproject = "of-file"\nmarkets = ["local"]'),
        ({"BROKER_URL": "http://env", "broker_api_key": "brk_env"}, 'url = "http://file"\nproject = "of-file"'),
        ({"BROKER_COMPLETION_S": "7.5"}, "completion_s = 3"),
        ({}, "completion_s = 3"),
        ({"BROKER_PROJECT": "", "BROKER_URL": ""}, 'project = "of-file"'),  # set to nothing is set
        ({}, 'data = "/elsewhere"'),
    ],
)
def test_a_command_and_its_broker_read_the_same_from_the_same_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], file: str
) -> None:
    (tmp_path / "broker.toml").write_text(file)
    monkeypatch.setenv("BROKER_DATA", str(tmp_path))
    for name, text in environment.items():
        monkeypatch.setenv(name, text)
    for given in ({}, {"data": tmp_path, "project": "given", "url": "http://given"}):
        whole, ours = settings.load(**given), client_settings.load(**given)
        key = whole.api_key.get_secret_value() if whole.api_key else whole.api_key
        assert (whole.data, whole.url, key, whole.project) == (ours.data, ours.url, ours.api_key or None, ours.project)
        assert whole.completion_s == ours.completion_s
    assert settings.Settings.model_fields["data"].default == client_settings.DEFAULT_DATA


def test_a_setting_of_a_wrong_kind_is_a_usage_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "broker.toml").write_text("project = 7")
    with pytest.raises(Failure, match="project = 7") as refused:
        load_client(data=tmp_path)
    assert refused.value.code == USAGE


def test_a_broker_is_not_started_on_settings_that_it_would_refuse(tmp_path: Path) -> None:
    (tmp_path / "broker.toml").write_text("[control]\nplan_s = 'often'")
    done = quick("list", "--data", str(tmp_path))
    assert done.returncode == USAGE
    assert "control.plan_s = 'often'" in done.stderr
    assert not (tmp_path / "broker.log").exists()


@pytest.mark.parametrize(
    ("command", "url", "code", "said"),
    [
        # nobody listens on port 1
        (
            "serve",
            "postgresql://me:canary@127.0.0.1:1/name",
            ERROR,
            "postgresql+psycopg://me:***@127.0.0.1:1/name cannot be used:",
        ),
        (
            "serve",
            "mysql://me:canary@127.0.0.1/name",
            USAGE,
            "must be postgresql://USER@HOST/NAME; leave it out for SQLite",
        ),
        # it reads the database itself
        ("backup", "postgresql://me:canary@127.0.0.1:1/name", ERROR, "cannot be used: connection failed"),
    ],
)
def test_a_database_that_a_broker_cannot_use_is_said_in_a_line_without_its_password(
    tmp_path: Path, command: str, url: str, code: int, said: str
) -> None:
    """In a process of its own: `serve` takes the logs."""
    words = {"serve": ("--port", "0"), "backup": (str(tmp_path / "backup"),)}[command]
    done = broker(command, *words, "--data", str(tmp_path / "data"), "--database-url", url)
    assert done.returncode == code
    assert said in done.stderr
    assert "Traceback" not in done.stderr and "canary" not in done.stderr
