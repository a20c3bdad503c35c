"""The seal loop: sign where each stream is, and put the checkpoint where the database's owner does not reach."""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass
from pathlib import Path

import structlog

from broker.ledger_key import ledger_signer
from broker.services import Services
from broker.settings import Settings
from jobs.clock import db_now
from ledger.seal import STREAMS
from ledger.sealed_export import CHECKPOINTS, notes, seal_now

log = structlog.get_logger()


def checkpoint_file(settings: Settings) -> Path:
    return (settings.ledger.checkpoints or settings.data / "checkpoints") / CHECKPOINTS


@dataclass
class Sealer:
    services: Services

    async def step(self) -> None:
        await seal_streams(self.services)


async def seal_streams(services: Services) -> None:
    """Sign each stream that has grown since. The file outside gets every note that it has not: also of a step that crashed
    between the database and the disk."""
    signer = await asyncio.to_thread(ledger_signer, services.settings)
    async with services.database.transaction() as session:
        for stream in STREAMS:
            note = await seal_now(session, signer, stream, now_us=await db_now(session))
            if note is not None:
                _, size, root = note.split("\n")[:3]
                log.info("ledger.checkpoint", stream=stream, size=int(size), root=root)
        kept = [note for _, _, note in await notes(session)]
    await asyncio.to_thread(_append, checkpoint_file(services.settings), kept)


def _append(file: Path, kept: list[str]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    before = file.read_text(encoding="utf-8") if file.exists() else ""
    missing = [note for note in kept if note not in before]
    if not missing:
        return
    with file.open("a", encoding="utf-8") as opened:
        opened.write("".join(missing))
        opened.flush()
        os.fsync(opened.fileno())
