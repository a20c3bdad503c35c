"""Find the sandbox of a folder, or start one that outlives us."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import psutil

import markets
from markets.errors import Unavailable

LOCK = "sandbox.lock"
ENDPOINT = "endpoint.json"
_LOOK_S = 0.02


@dataclass(frozen=True, slots=True)
class SandboxHandle:
    """Where a live sandbox listens. `token` is its API key; `process` is set when we are its parent."""

    url: str
    token: str = field(repr=False)
    pid: int
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False, compare=False)


async def ensure_running(
    folder: Path, *, catalogue: Path | None = None, port: int = 0, idle_s: float = 300, timeout_s: float = 30
) -> SandboxHandle:
    """The sandbox that owns `folder`; started, detached from us, if none does. Raises Unavailable when it fails to."""
    await asyncio.to_thread(folder.mkdir, parents=True, exist_ok=True, mode=0o700)
    deadline = time.monotonic() + timeout_s
    process: subprocess.Popen[bytes] | None = None
    while (handle := running(folder)) is None:
        if process is None and not _is_owned(folder):
            process = await asyncio.to_thread(_start, folder, catalogue, port, idle_s)
        if process is not None and process.poll() is not None:
            if not _is_owned(folder):
                raise Unavailable(f"the sandbox in {folder} ended with {process.returncode}; see sandbox.log there")
            process = None  # another one was faster
        if time.monotonic() > deadline:
            raise Unavailable(f"the sandbox in {folder} did not answer within {timeout_s} s; see sandbox.log there")
        await asyncio.sleep(_LOOK_S)
    return replace(handle, process=process)


def running(folder: Path) -> SandboxHandle | None:
    """The live sandbox of `folder`. What a dead one wrote about itself does not count."""
    if not _is_owned(folder):
        return None
    try:
        endpoint = json.loads((folder / ENDPOINT).read_bytes())
    except FileNotFoundError:
        return None  # it is just starting
    if not _is_alive(endpoint["pid"]):
        return None  # a dead one's endpoint; the owner of the lock has not written its own yet
    return SandboxHandle(url=endpoint["url"], token=endpoint["token"], pid=endpoint["pid"])


def _is_alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _is_owned(folder: Path) -> bool:
    try:
        lock = os.open(folder / LOCK, os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(lock)
    return False


def _start(folder: Path, catalogue: Path | None, port: int, idle_s: float) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "markets.sandbox", "--dir", str(folder), "--port", str(port)]
    command += ["--idle-s", str(idle_s)]
    if catalogue is not None:
        command += ["--catalogue", str(catalogue.absolute())]
    with (folder / "sandbox.log").open("ab") as log:
        return subprocess.Popen(
            command,
            cwd=Path(markets.__file__).parent.parent,  # where `-m` finds the package, installed or not
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=log,
            start_new_session=True,
        )
