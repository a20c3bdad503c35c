"""The seal loop: hold what was signed before against the streams, sign where each is now, and put the checkpoint where the
database's owner does not reach."""

from __future__ import annotations

import asyncio
import fcntl
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from broker.ledger_key import ledger_signer
from broker.services import Services
from broker.settings import Settings
from jobs.clock import db_now
from ledger.checkpoint import split_notes
from ledger.outside import Trail, disagreements
from ledger.seal import STREAMS
from ledger.sealed_export import CHECKPOINTS, has_grown, notes, seal_now

log = structlog.get_logger()
WHOLE_S = 86_400.0  # how often the streams are hashed from their first leaf


def checkpoint_file(settings: Settings) -> Path:
    return (settings.ledger.checkpoints or settings.data / "checkpoints") / CHECKPOINTS


@dataclass
class Sealer:
    """`trail`: what was hashed before and held. Each `WHOLE_S` all of it is hashed anew, as at each start."""

    services: Services
    trail: Trail = field(default_factory=Trail)
    clock: Callable[[], float] = time.monotonic
    _whole_at: float = float("-inf")

    async def step(self) -> None:
        if self.clock() - self._whole_at >= WHOLE_S:
            self.trail, self._whole_at = Trail(), self.clock()
        await seal_streams(self.services, self.trail)


async def seal_streams(services: Services, trail: Trail | None = None) -> None:
    """Sign each stream that has grown since. The file outside gets every note that it has not: also of a step that crashed
    between the database and the disk.

    Before anything new is signed, what was signed before must still hold: a note outside that does not fit the stream is an
    error in the log, and nothing is signed (our signature would make changed books good).
    """
    signer = await asyncio.to_thread(ledger_signer, services.settings)
    file = checkpoint_file(services.settings)
    async with services.database.transaction() as session:
        is_due = await has_grown(session)
        before = [note for _, _, note in await notes(session)]
    if is_due and (wrong := await _wrong(services, file, before, trail)):
        log.error("ledger.checkpoints_differ", file=str(file), count=len(wrong), problems=wrong[:5])
        return
    async with services.database.transaction() as session:
        for stream in STREAMS:
            note = await seal_now(session, signer, stream, now_us=await db_now(session))
            if note is not None:
                _, size, root = note.split("\n")[:3]
                log.info("ledger.checkpoint", stream=stream, size=int(size), root=root)
        kept = [note for _, _, note in await notes(session)]
    await asyncio.to_thread(_append, file, kept)


async def _wrong(services: Services, file: Path, known: list[str], trail: Trail | None) -> list[str]:
    """Why nothing may be signed now: what of the file outside does not hold."""
    whole, rest = split_notes(await asyncio.to_thread(_read, file))
    found = await disagreements(services.database.transaction, whole, trail)
    if rest and not _is_torn(rest, known):
        found.append(f"the file ends with something that is no note: {rest[:40]!r}")
    return found


def _read(file: Path) -> bytes:
    return file.read_bytes() if file.exists() else b""


def _is_torn(rest: bytes, known: list[str]) -> bool:
    """Whether it is the beginning of a note of ours: a crash while it was written."""
    return any(note.encode().startswith(rest) for note in known)


def _append(file: Path, kept: list[str]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a+b") as opened:
        fcntl.flock(opened, fcntl.LOCK_EX)  # an export seals, too, while the loop does
        opened.seek(0)
        before = opened.read()
        _, rest = split_notes(before)
        if rest and _is_torn(rest, kept):
            before = before.removesuffix(rest)
            opened.truncate(len(before))
        opened.write(b"".join(note for note in map(str.encode, kept) if note not in before))
        opened.flush()
        os.fsync(opened.fileno())
