"""The keeper of one machine: the parent of its main process, alive as long as that is, whatever happens to the market.

Run as a program, `python -I -S keeper.py FOLDER`, standard library only, so that it starts in 30 ms and needs no
environment. It reads FOLDER/machine.json, starts the main process in a process group of its own, and writes
FOLDER/started.json and FOLDER/exit.json (the exit status as a shell cannot tell it: -9 for SIGKILL, with its time).
FOLDER/keeper.lock is made once, under a lock that the keeper holds until it dies: a second keeper for the same folder
ends at once, and "is it alive" needs no process id that may have been given to another process meanwhile.

When the main process ends, the machine ends: everything that it started is killed, also what left its process group.
When the keeper is killed, the kernel kills the main process (Linux).
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable

TYPE_CHECKING = False  # as in typing, which is not worth its import time here
if TYPE_CHECKING:
    from typing import Any

ALREADY_KEPT = 75
PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36


def main(folder: str) -> int:
    """Keep the machine in `folder`. 0: its end is recorded; 75: it has a keeper already."""
    if not _claim(folder):
        return ALREADY_KEPT
    with open(f"{folder}/machine.json", encoding="utf-8") as file:  # noqa: PTH123  (pathlib costs 10 ms here)
        machine = json.load(file)
    prctl = _prctl()
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    started_us = time.time_ns() // 1000
    try:
        process = _start(folder, machine, prctl)
    except OSError as error:
        _write(folder, "started.json", {"pid": None, "keeper": os.getpid(), "started_us": started_us})
        _end(folder, 127, f"{machine['argv'][0]}: {error.strerror}")
        return 0
    signal.signal(signal.SIGTERM, lambda *_: os.killpg(process.pid, signal.SIGKILL))
    _write(folder, "started.json", {"pid": process.pid, "keeper": os.getpid(), "started_us": started_us})
    status = _wait(process.pid)
    ended_us = time.time_ns() // 1000
    _kill_rest(process.pid)
    _end(folder, status, None, ended_us)
    return 0


def _claim(folder: str) -> bool:
    """Make keeper.lock, already locked: linking a locked file leaves no moment in which it looks abandoned."""
    own = f"{folder}/keeper.{os.getpid()}"
    descriptor = os.open(own, os.O_CREAT | os.O_RDWR, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        os.link(own, f"{folder}/keeper.lock")
    except FileExistsError:
        return False
    finally:
        os.unlink(own)  # noqa: PTH108
    return True


def _prctl() -> Callable[[int, int], object]:
    if not sys.platform.startswith("linux"):
        return lambda *_: 0
    return ctypes.CDLL(None, use_errno=True).prctl


def _start(folder: str, machine: dict[str, Any], prctl: Callable[[int, int], object]) -> subprocess.Popen[bytes]:
    keeper = os.getpid()

    def before_exec() -> None:
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != keeper:  # it died before the line above took effect
            os._exit(1)

    with open(f"{folder}/stdout.log", "ab") as out, open(f"{folder}/stderr.log", "ab") as err:  # noqa: PTH123
        return subprocess.Popen(
            machine["argv"],
            env=machine["env"],
            cwd=machine["dir"],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            start_new_session=True,
            preexec_fn=before_exec,  # noqa: PLW1509  (this program has one thread)
        )


def _wait(main_pid: int) -> int:
    """Reap orphans that came to us until the main process ends; its status, negative for a signal."""
    while True:
        pid, status = os.wait()
        if pid == main_pid:
            return os.waitstatus_to_exitcode(status)


def _kill_rest(group: int) -> None:
    """Kill and reap until nothing of the machine is left. Killed parents hand their children to us: again and again."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal.SIGKILL)
    while True:
        for pid in _children():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            time.sleep(0.002)


def _children() -> list[int]:
    try:
        with open(f"/proc/self/task/{os.getpid()}/children", encoding="ascii") as file:  # noqa: PTH123
            return [int(pid) for pid in file.read().split()]
    except OSError:
        return []


def _end(folder: str, status: int, error: str | None, ended_us: int | None = None) -> None:
    ended_us = ended_us or time.time_ns() // 1000
    _write(folder, "exit.json", {"exit_status": status, "ended_us": ended_us, "error": error})


def _write(folder: str, name: str, content: object) -> None:
    """Whole or not at all, and on the disk before it counts. An existing file stays: the first word is the truth."""
    own = f"{folder}/{name}.{os.getpid()}"
    with open(own, "w", encoding="utf-8") as file:  # noqa: PTH123
        json.dump(content, file)
        file.flush()
        os.fsync(file.fileno())
    try:
        os.link(own, f"{folder}/{name}")
    except OSError as error:
        if error.errno != errno.EEXIST:
            raise
    os.unlink(own)  # noqa: PTH108


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
