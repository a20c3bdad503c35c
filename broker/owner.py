"""One owner of a data folder (contract C16).

An OS lock on `DATA/broker.owner` decides who owns the folder: the kernel drops it with the process, so that a dead
owner never blocks, whatever its pid has become. `DATA/broker.lock` is what the owner says of itself (JSON, mode 0600):
pid, the process's create time, and, once it answers, its URL and the key for local commands.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path

LOCK = "broker.owner"
CARD = "broker.lock"
ADMIN_KEY = "admin.key"


class Owned(Exception):
    """Another live process owns the data folder; the message names it and says how to go on."""


@dataclass(frozen=True)
class Owner:
    """The live owner of a folder. `created` is psutil's create time (epoch seconds); `url` is None until it answers."""

    pid: int
    created: float
    url: str | None
    key: str | None


class Ownership:
    """Held by the broker for as long as it lives: keep the object, and close it last."""

    def __init__(self, data: Path, lock: int) -> None:
        self._data = data
        self._lock = lock
        self._card = Owner(os.getpid(), _created(os.getpid()) or 0.0, None, None)
        self._write()

    def announce(self, url: str, key: str | None) -> None:
        """Say where this broker answers, for the commands that look for it."""
        self._card = Owner(self._card.pid, self._card.created, url, key)
        self._write()

    def close(self) -> None:
        """Give the folder up. The card goes before the lock, so that nobody removes a successor's card."""
        (self._data / CARD).unlink(missing_ok=True)
        os.close(self._lock)

    def _write(self) -> None:
        write_private(self._data / CARD, json.dumps(asdict(self._card)) + "\n")


def take(data: Path, *, patience_s: float = 1.0) -> Ownership:
    """Become the owner of `data`, which is made when it is missing. Raises Owned when a live process has it.

    `patience_s`: a command that looks whether an owner lives holds the lock, shared, for an instant.
    """
    # what is in it is not for others of this machine; one that is there already is left as it is
    data.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = os.open(data / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    give_up = time.monotonic() + patience_s
    while not _locked(lock, fcntl.LOCK_EX):
        if time.monotonic() > give_up:
            os.close(lock)
            raise Owned(_described(data))
        time.sleep(0.02)
    return Ownership(data, lock)


def owner(data: Path) -> Owner | None:
    """The live owner of `data`, or None. It may still be starting: then its `url` is None."""
    try:
        lock = os.open(data / LOCK, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        if _locked(lock, fcntl.LOCK_SH):
            return None
    finally:
        os.close(lock)
    return _read(data)


def write_private(file: Path, text: str) -> None:
    """Replace `file` at once by `text`, readable by its owner alone."""
    fresh = file.with_name(f".{file.name}.{os.getpid()}")
    fresh.unlink(missing_ok=True)
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as out:
        out.write(text)
    fresh.replace(file)


def _locked(lock: int, mode: int) -> bool:
    try:
        fcntl.flock(lock, mode | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _read(data: Path) -> Owner:
    """The card of an owner that is known to live. A card of a dead predecessor, or none yet: the owner is starting."""
    starting = Owner(0, 0.0, None, None)
    try:
        card = Owner(**json.loads((data / CARD).read_text(encoding="utf-8")))
    except FileNotFoundError:
        return starting
    created = _created(card.pid)
    return card if created is not None and abs(created - card.created) < 1.0 else starting


def _created(pid: int) -> float | None:
    """When this process was made, in epoch seconds as psutil tells them; None if there is none."""
    import psutil  # noqa: PLC0415 - most commands look at no folder, or at one that nobody owns

    try:
        return psutil.Process(pid).create_time()
    except psutil.NoSuchProcess:
        return None


def _described(data: Path) -> str:
    found = owner(data)
    who = f"pid {found.pid} at {found.url}" if found and found.url else "a broker that is still starting"
    return (
        f"{data}: {who} already serves this data folder; use it (commands find it by --data {data}), "
        f"stop it with SIGTERM, or serve another folder"
    )
