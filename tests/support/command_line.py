"""The commands as a person or a script runs them: real processes, with pipes or on a terminal."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import openai
from typer.testing import CliRunner

from broker.cli.exits import Failure
from broker.cli.main import app
from broker.owner import owner

ENGINE = Path(__file__).parent / "scripted_engine.py"
MODEL = f"""
[models.scripted]
engine = "command"
argv = ["{{python}}", "{ENGINE}", "--port", "{{port}}"]
load_s = 1
"""
# What a shell of a developer may have set must not reach these tests.
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("BROKER_")}
DONE_WITHIN_S = 90
BROKER = (sys.executable, "-m", "broker")


def broker(*arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, its output in pipes; rich is told to colour, and must not."""
    return subprocess.run(
        [*BROKER, *arguments],
        env=ENVIRONMENT | {"FORCE_COLOR": "1"} | (env or {}),
        capture_output=True,
        text=True,
        check=False,
        timeout=DONE_WITHIN_S,
    )


def quick(*arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """The same inside this process: what a command says and how it ends, without the second that Python needs to start."""
    hidden = {name: None for name in os.environ if name.startswith("BROKER_")}
    done = CliRunner().invoke(app, arguments, env=hidden | {"FORCE_COLOR": "1"} | (env or {}))
    failure = done.exception if isinstance(done.exception, Failure) else None
    if done.exception and failure is None and not isinstance(done.exception, SystemExit):
        raise done.exception
    code = failure.code if failure else done.exit_code
    return subprocess.CompletedProcess(arguments, code, done.stdout, f"{done.stderr}{failure or ''}")


def start(data: Path, *more: str) -> tuple[subprocess.Popen[str], dict[str, Any]]:
    """`serve` on `data`, and its first line."""
    with (data.parent / f"{data.name}.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "broker", "serve", "--data", str(data), "--markets", "sandbox", *more],
            env=ENVIRONMENT,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
    assert process.stdout
    return process, json.loads(process.stdout.readline())


def stop(process: subprocess.Popen[str]) -> tuple[int, str]:
    """SIGTERM; the exit code and what came on standard output after the first line."""
    process.send_signal(signal.SIGTERM)
    rest, _ = process.communicate(timeout=60)
    return process.returncode, rest


def until(true: Callable[[], Any], what: str, within_s: float = 60) -> Any:
    """Poll until `true` gives something, and give that."""
    give_up = time.monotonic() + within_s
    while not (found := true()):
        assert time.monotonic() < give_up, f"not within {within_s} s: {what}"
        time.sleep(0.05)
    return found


def offers(data: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(
        quick("offers", "--market", "sandbox", "--data", str(data), "--json").stdout
    )["data"]
    return found


def prompts(folder: Path, *texts: str) -> str:
    file = folder / "prompts.txt"
    file.write_text("".join(text + "\n" for text in texts))
    return str(file)


def submit(data: Path, file: str, *more: str) -> tuple[int, dict[str, Any]]:
    """The exit code and the JSON of a `submit` to the scripted model."""
    done = quick("submit", file, "--model", "scripted", "--data", str(data), "--json", *more)
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


def new_key(data: Path, principal: str, project: str, *roles: str) -> str:
    """A key of this principal in this project, which is made with its first key."""
    wanted = [word for role in roles for word in ("--role", role)]
    done = quick("keys", "create", principal, *wanted, "--project", project, "--data", str(data), "--json")
    assert done.returncode == 0, done.stderr
    return str(json.loads(done.stdout)["key"])


def client(data: Path) -> openai.OpenAI:
    """The stock client, for the broker that lives in `data`."""
    live = owner(data)
    assert live is not None
    return openai.OpenAI(base_url=f"{live.url}/v1", api_key=live.key)


class Terminal:
    """A program (a command of ours, if no other) on a terminal of its own: what it shows, and what a person types."""

    def __init__(self, *arguments: str, program: Sequence[str] = BROKER, env: dict[str, str] | None = None) -> None:
        self._controller, terminal = pty.openpty()
        self._process = subprocess.Popen(
            [*program, *arguments],
            env=ENVIRONMENT | {"TERM": "xterm", "COLUMNS": "200"} | (env or {}),
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
            start_new_session=True,
        )
        os.close(terminal)
        self.shown = ""

    def reads(self, text: str) -> None:
        """Wait until this is on the screen."""
        give_up = time.monotonic() + DONE_WITHIN_S
        while text not in self.shown:
            assert time.monotonic() < give_up, f"never shown: {text!r}\n{self.shown}"
            assert self._take(), f"it ended without showing {text!r}:\n{self.shown}"

    def types(self, text: str) -> None:
        os.write(self._controller, text.encode())

    def interrupt(self) -> None:
        """Ctrl-C, as the terminal gives it to the program in the foreground."""
        self._process.send_signal(signal.SIGINT)

    def ended(self) -> int:
        """Its exit code."""
        while self._take():
            pass
        code = self._process.wait(DONE_WITHIN_S)
        os.close(self._controller)
        return code

    def _take(self) -> bool:
        """More of what it shows; False when it has ended. Linux says EIO of a terminal that nobody holds any more."""
        if not select.select([self._controller], [], [], 1)[0]:
            return True
        try:
            chunk = os.read(self._controller, 65536)
        except OSError:
            return False
        self.shown += chunk.decode(errors="replace")
        return bool(chunk)
