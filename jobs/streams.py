"""How a stream of unknown length becomes one immutable object in bounded memory: what differs between stores.

obstore streams only what it may overwrite; with mode "create" it holds all of it in memory (measured, 0.12.1: 320 MB for
300 MB). So a stream is written aside and gets its name when it is whole, by a rename that does not overwrite: folders,
Google Cloud Storage and Azure have one. S3 has not, and is written to by `jobs/s3.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Protocol

import obstore
import structlog
from obstore.store import ObjectStore as Backend
from ulid import ULID

from jobs.clock import MICROSECONDS
from jobs.errors import ObjectMissing, StoreFailed
from jobs.store_errors import told_as_ours

log = structlog.get_logger()
Chunks = AsyncIterator[bytes]

WRITE_CHUNK = 5 * 1024 * 1024
WRITE_CONCURRENCY = 2  # each costs a chunk of memory
INCOMING = ".incoming"  # where streams are written before they have their names; no project is called so
ABANDONED_S = 86_400  # a stream of a day ago has nobody who writes it


class Streams(Protocol):
    """Creates objects from streams."""

    async def write(self, key: str, chunks: Chunks, *, in_parts: bool = False) -> None:
        """Create the object when the stream has ended. Raises ObjectExists, StoreFailed, and whatever `chunks` raises; then
        nothing is there under the name. `in_parts`: also when it would fit one request, as the check of a store wants it.
        """

    async def remove_abandoned(self, now_us: int) -> int:
        """Remove what a crash left of streams that never got their names. Returns how many there were."""

    async def close(self) -> None:
        """Let go of threads and connections."""


class AsideStreams:
    """Written aside, then renamed. `folder` is where the store lies when it is a folder of this machine."""

    def __init__(self, backend: Backend, folder: Path | None = None) -> None:
        self._backend = backend
        self._folder = folder

    async def write(self, key: str, chunks: Chunks, *, in_parts: bool = False) -> None:
        """See Streams."""
        aside = f"{INCOMING}/{ULID()}"
        try:
            with told_as_ours("write the stream for", key):
                await obstore.put_async(
                    self._backend,
                    aside,
                    chunks,
                    use_multipart=True,
                    chunk_size=WRITE_CHUNK,
                    max_concurrency=WRITE_CONCURRENCY,
                )
            with told_as_ours("give its name to", key):
                await obstore.rename_async(self._backend, aside, key, overwrite=False)
        finally:
            await self._delete(aside)

    async def remove_abandoned(self, now_us: int) -> int:
        """See Streams."""
        before_us = now_us - ABANDONED_S * MICROSECONDS
        old = []
        with told_as_ours("list", INCOMING):
            async for page in obstore.list(self._backend, prefix=INCOMING):
                old += [found["path"] for found in page if _begun_us(found["path"]) < before_us]
        for key in old:
            await self._delete(key)
        # A folder's half-written files are not listed: obstore writes to `<name>#<number>` first.
        halves = [] if self._folder is None else await asyncio.to_thread(_halves, self._folder / INCOMING, before_us)
        return len(old) + len(halves)

    async def close(self) -> None:
        """Nothing is held."""

    async def _delete(self, aside: str) -> None:
        try:
            with told_as_ours("delete", aside):
                await obstore.delete_async(self._backend, aside)
        except ObjectMissing:
            return
        except StoreFailed as failure:
            # nobody reads it, and it is collected a day later; what the caller is told of is more important
            log.warning("object.left_aside", key=aside, error=str(failure))


def _begun_us(key: str) -> int:
    """When a stream was begun, by the ULID that it is written under."""
    return ULID.from_str(key.rpartition("/")[2]).milliseconds * 1_000


def _halves(folder: Path, before_us: int) -> list[str]:
    """Remove the halves of streams that were begun before; their names."""
    old = [file for file in folder.glob("*#*") if _begun_us(file.name.partition("#")[0]) < before_us]
    for file in old:
        file.unlink(missing_ok=True)
    return [file.name for file in old]
