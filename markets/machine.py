"""A process as a machine: started in a folder of its own, found again after any crash, killed whole, its end recorded.

Layout of FOLDER/<tag>/: `machine.json` (what to run, and the market's own `notes`), `disk/` (the files of MachineStart;
`{dir}` stands for it), `stdout.log`, `stderr.log`, and what the keeper writes (`markets.keeper`). A machine exists from
the moment its keeper holds `keeper.lock`; files without a keeper are only laid out and cost nothing.
Every process of a machine carries BROKER_RENTAL_TAG in its environment.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import psutil

from markets import keeper
from markets.errors import Ambiguous, StillReleasing
from markets.market import MachineStart

TAG_VARIABLE = "BROKER_RENTAL_TAG"
_TAG = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
_LOOK_S = 0.01

Phase = Literal["absent", "laid", "starting", "running", "ended"]


@dataclass(frozen=True, slots=True)
class Machine:
    """What is true of a machine now. `pid` is its main process, also its process group. Times: microseconds UTC.

    `seen_us` is a moment at which it was so. `exit_status` None at the end means that nobody saw it (the keeper was
    killed).
    """

    tag: str
    phase: Phase
    seen_us: int
    pid: int | None = None
    started_us: int | None = None
    ended_us: int | None = None
    exit_status: int | None = None
    error: str | None = None


class Machines:
    """All machines under one folder. Any number of processes may look at the same folder."""

    def __init__(self, root: Path) -> None:
        self._root = root.absolute()
        self._keepers: dict[str, subprocess.Popen[bytes]] = {}

    def folder(self, tag: str) -> Path:
        """Where the machine's records are. Raises ValueError for a tag that is not a plain name."""
        if not _TAG.fullmatch(tag):
            raise ValueError(f"tag {tag!r} is not a plain name; use letters, digits, `_`, `.` and `-`, at most 128")
        return self._root / tag

    def disk(self, tag: str) -> Path:
        """The folder that the machine sees as its own; `{dir}` in argv and env."""
        return self.folder(tag) / "disk"

    def tags(self) -> list[str]:
        """Tags of all machines that were ever laid out here, sorted."""
        if not self._root.is_dir():
            return []
        return sorted(each.name for each in self._root.iterdir() if (each / "machine.json").is_file())

    def notes(self, tag: str) -> Mapping[str, Any]:
        """What the market wrote down with the machine. Raises FileNotFoundError when nothing was laid out."""
        notes: Mapping[str, Any] = json.loads((self.folder(tag) / "machine.json").read_bytes())["notes"]
        return notes

    def lay(self, tag: str, start: MachineStart, notes: Mapping[str, Any]) -> None:
        """Lay out files and records so that `launch` can start the machine. One that was launched stays as it is."""
        folder, disk = self.folder(tag), self.disk(tag)
        if (folder / "keeper.lock").exists():
            return
        shutil.rmtree(disk, ignore_errors=True)
        disk.mkdir(parents=True, mode=0o700)
        for name, content in start.files.items():
            file = disk / name
            if not file.resolve().is_relative_to(disk.resolve()):
                raise ValueError(f"file {name!r} of {tag} lies outside of the machine's folder; give a relative name")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
        machine = {
            "tag": tag,
            "argv": [part.replace("{dir}", str(disk)) for part in start.argv],
            "env": self._environment(tag, start),
            "dir": str(disk),
            "notes": dict(notes),
        }
        write_whole(folder / "machine.json", json.dumps(machine).encode())

    async def launch(self, tag: str, *, timeout_s: float = 20) -> Machine:
        """Start the laid machine, once: a second launch answers with the first. Raises Ambiguous when it hangs."""
        if self.look(tag).phase == "laid":
            await asyncio.to_thread(self._spawn, tag)
        deadline = time.monotonic() + timeout_s
        while (machine := self.look(tag)).phase in ("laid", "starting"):
            if time.monotonic() > deadline:
                raise Ambiguous(f"machine {tag} did not start within {timeout_s} s; see {self.folder(tag)}/keeper.log")
            await asyncio.sleep(_LOOK_S)
        return machine

    def look(self, tag: str) -> Machine:
        """The machine as it is now. The end of one whose keeper was killed is recorded here, when first seen."""
        folder, seen_us = self.folder(tag), time.time_ns() // 1000
        if not (folder / "machine.json").is_file():
            return Machine(tag, "absent", seen_us)
        if not (folder / "keeper.lock").exists():
            return Machine(tag, "laid", seen_us)
        kept = _is_locked(folder / "keeper.lock")  # before reading: a keeper writes first and dies then
        end = _read(folder / "exit.json")
        started = _read(folder / "started.json")
        if end is None and not kept:
            end = self._bury(tag)
        if end is not None:
            self._reap(tag)
            return Machine(tag, "ended", seen_us, **_start_of(started), **end)
        return Machine(tag, "running" if started else "starting", seen_us, **_start_of(started))

    async def kill(self, tag: str, *, timeout_s: float = 10) -> Machine:
        """Kill the whole machine; return when nothing of it is left. Raises StillReleasing when that takes longer."""
        deadline = time.monotonic() + timeout_s
        while (machine := self.look(tag)).phase in ("starting", "running"):
            if machine.pid is not None and _is_locked(self.folder(tag) / "keeper.lock"):
                _kill_group(machine.pid)
            if time.monotonic() > deadline:
                raise StillReleasing(f"machine {tag}: process {machine.pid} is still there after SIGKILL")
            await asyncio.sleep(_LOOK_S)
        while machine.phase == "ended" and (left := await asyncio.to_thread(processes_of, tag)):
            # A keeper on its last line, or something that a killed keeper left behind.
            for process in left:
                if not _is_locked(self.folder(tag) / "keeper.lock"):
                    _kill_process(process)
            if time.monotonic() > deadline:
                raise StillReleasing(f"machine {tag}: processes {[each.pid for each in left]} are still there")
            await asyncio.sleep(_LOOK_S)
        return machine

    def _environment(self, tag: str, start: MachineStart) -> dict[str, str]:
        """Nothing of the broker's own environment reaches the machine."""
        disk = str(self.disk(tag))
        path = ":".join((str(Path(sys.executable).parent), "/usr/local/bin", "/usr/bin", "/bin", "/usr/sbin", "/sbin"))
        given = {name: text.replace("{dir}", disk) for name, text in start.env.items()}
        return {"PATH": path, "HOME": disk, "LANG": "C.UTF-8", **given, TAG_VARIABLE: tag}

    def _spawn(self, tag: str) -> None:
        folder = self.folder(tag)
        environment = json.loads((folder / "machine.json").read_bytes())["env"]
        with (folder / "keeper.log").open("ab") as log:
            self._keepers[tag] = subprocess.Popen(
                [sys.executable, "-I", "-S", str(Path(keeper.__file__)), str(folder)],
                env={"PATH": environment["PATH"], TAG_VARIABLE: tag},
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _bury(self, tag: str) -> dict[str, Any]:
        """The keeper is dead and recorded no end: kill what is left and record the end as of now, status unknown."""
        for process in processes_of(tag):
            _kill_process(process)
        end = {"exit_status": None, "ended_us": time.time_ns() // 1000, "error": "the machine's keeper was killed"}
        write_whole(self.folder(tag) / "exit.json", json.dumps(end).encode(), replace=False)
        return _read(self.folder(tag) / "exit.json") or end

    def _reap(self, tag: str) -> None:
        """Collect our ended child, so that no zombie stays; it writes its last record a moment before it ends."""
        process = self._keepers.get(tag)
        if process is not None and process.poll() is not None:
            del self._keepers[tag]


def processes_of(tag: str) -> list[psutil.Process]:
    """All living processes that carry `tag` in their environment. Those that we may not read are not ours."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(TAG_VARIABLE) == tag and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def write_whole(file: Path, content: bytes, *, replace: bool = True) -> None:
    """Write `file` whole or not at all, readable by us alone, and on the disk when this returns."""
    own = file.with_name(f"{file.name}.{os.getpid()}")
    descriptor = os.open(own, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as out:
        out.write(content)
        out.flush()
        os.fsync(out.fileno())
    if replace:
        own.replace(file)
        return
    try:
        file.hardlink_to(own)
    except FileExistsError:
        pass  # somebody else's record came first and is the truth
    finally:
        own.unlink()


def _start_of(started: Mapping[str, Any] | None) -> dict[str, Any]:
    return {"pid": started["pid"], "started_us": started["started_us"]} if started else {}


def _read(file: Path) -> dict[str, Any] | None:
    try:
        content: dict[str, Any] = json.loads(file.read_bytes())
    except FileNotFoundError:
        return None
    return content


def _is_locked(file: Path) -> bool:
    """Whether a living keeper holds it."""
    try:
        descriptor = os.open(file, os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _kill_group(group: int) -> None:
    with contextlib.suppress(ProcessLookupError):  # it ended by itself
        os.killpg(group, signal.SIGKILL)


def _kill_process(process: psutil.Process) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):  # it ended by itself
        process.kill()
