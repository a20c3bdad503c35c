"""The object store: immutable objects under keys that are written once.

One class over obstore for every kind of store. Correctness rests on one thing: a name is given once, by a create-only
write (`put`) or when a stream is whole (`jobs/streams.py`); no etag updates or attributes are used. `jobs/store_check.py`
proves it of a store before it is used. Errors are four: ObjectExists, ObjectMissing, ObjectCorrupt, and StoreFailed, after
which nothing is known about the object.
"""

from __future__ import annotations

import asyncio
import hashlib
import heapq
import random
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Protocol

import msgspec
import obstore
import structlog
from obstore.store import LocalStore
from obstore.store import ObjectStore as Backend

from jobs.errors import ObjectCorrupt, ObjectExists, ObjectMissing, StoreFailed
from jobs.store_errors import told_as_ours
from jobs.streams import AsideStreams, Chunks, Streams

log = structlog.get_logger()

READ_CHUNK = 1024 * 1024
TRIES = 5  # in a row and without progress; then the caller hears of it
FIRST_PAUSE_S = 0.1


class Stored(msgspec.Struct, frozen=True, kw_only=True):
    """An object as it was written: `size` in bytes, hex `sha256` of the content."""

    key: str
    size: int
    sha256: str


class Listed(msgspec.Struct, frozen=True, kw_only=True):
    """An object as the store lists it; `written_us` by the store's clock, microseconds UTC."""

    key: str
    size: int
    written_us: int


class SignedRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What somebody without credentials may do once or more until it expires: these headers must be sent as they are."""

    url: str
    headers: dict[str, str]


class Direct(Protocol):
    """A store that others may be sent to: it checks signatures that bind a request to all that it may do."""

    async def signed_get(self, key: str, start: int, stop: int, ttl_s: int) -> SignedRequest:
        """Read exactly bytes [start, stop), which are not empty."""

    async def signed_put(self, key: str, size: int, sha256: str, ttl_s: int) -> SignedRequest:
        """Create the object with exactly these bytes."""

    async def sha256(self, key: str) -> str | None:
        """The hex sha256 that the store itself verified when the object was written; None where it keeps none."""


class ObjectStore:
    """Objects of one backend. Keys are relative paths; a key that is no clean path raises ValueError.

    Reads and writes hold at most a few chunks in memory, whatever the object's size. `creating` is the backend for
    create-only writes, which must not repeat a request by itself: the repetition would find what the first one wrote.
    `direct` is None where others cannot be sent to the store.
    """

    def __init__(
        self, backend: Backend, streams: Streams, *, creating: Backend | None = None, direct: Direct | None = None
    ) -> None:
        self.backend = backend
        self.creating = creating or backend
        self.streams = streams
        self.direct = direct
        self._is_ordered = not isinstance(backend, LocalStore)  # the others list in the order of keys

    @classmethod
    def local(cls, folder: Path) -> ObjectStore:
        """A folder on this machine, made if it is missing."""
        backend = LocalStore(folder, mkdir=True)
        return cls(backend, AsideStreams(backend, folder))

    async def put(self, key: str, content: bytes) -> Stored:
        """Create the object. Raises ObjectExists and StoreFailed.

        When an answer is lost it is asked again, and what is there then with the same bytes is what we wrote.
        """
        _check_key(key)
        failures = 0
        while True:
            try:
                with told_as_ours("create", key):
                    await obstore.put_async(self.creating, key, content, mode="create")
                break
            except StoreFailed as failure:
                failures += 1
                await _pause(failures, failure)
            except ObjectExists:
                if failures and await self.get(key) == content:
                    break
                raise
        return Stored(key=key, size=len(content), sha256=hashlib.sha256(content).hexdigest())

    async def put_stream(self, key: str, chunks: Chunks, *, in_parts: bool = False) -> Stored:
        """Create the object from a stream. Raises ObjectExists, StoreFailed, and whatever `chunks` raises; then nothing is
        there. `in_parts` as in `Streams.write`."""
        _check_key(key)
        await self._require_free(key)
        meter = _Meter(chunks)
        await self.streams.write(key, meter.chunks(), in_parts=in_parts)
        return Stored(key=key, size=meter.size, sha256=meter.digest.hexdigest())

    async def _require_free(self, key: str) -> None:
        """Say early what the store would say in the end, before anything is read."""
        try:
            await self.size(key)
        except ObjectMissing:
            return
        raise ObjectExists(f"object {key} exists; objects are immutable")

    async def put_same(self, key: str, chunks: Callable[[], Chunks]) -> Stored:
        """Create the object, or find it there with the same bytes: both are success, so that a caller can start over.

        `chunks` is called again for the comparison. Raises ObjectExists when the object there is another one.
        """
        try:
            return await self.put_stream(key, chunks())
        except ObjectExists:
            wanted = await _measured(key, chunks())
            found = await _measured(key, self.stream(key))
            if wanted != found:
                raise ObjectExists(
                    f"object {key} exists with other content: sha256 {found.sha256}, not {wanted.sha256}"
                ) from None
            return found

    async def size(self, key: str) -> int:
        """Bytes of the object (HEAD). Raises ObjectMissing and StoreFailed."""
        with told_as_ours("find", key):
            return (await obstore.head_async(self.backend, key))["size"]

    async def holds(self, key: str, size: int, sha256: str) -> bool:
        """Whether the object has exactly these bytes: by the store's own word where it keeps one, else by reading it.

        Raises ObjectMissing and StoreFailed.
        """
        if await self.size(key) != size:
            return False
        told = None if self.direct is None else await self.direct.sha256(key)
        return (told or (await _measured(key, self.stream(key))).sha256) == sha256

    async def committed(self, key: str, size: int | None, sha256: str) -> bytes:
        """The whole object, if it has these bytes. Raises ObjectMissing, StoreFailed, and ObjectCorrupt, saying what it has."""
        content = await self.get(key)
        # in a thread: megabytes would keep heartbeats and commits waiting
        return await asyncio.to_thread(require_committed, content, size, sha256)

    async def get(self, key: str, start: int = 0, stop: int | None = None) -> bytes:
        """Bytes [start, stop) of the object, or all. Raises as `stream`."""
        return b"".join([chunk async for chunk in self.stream(key, start, stop)])

    async def stream(self, key: str, start: int = 0, stop: int | None = None) -> Chunks:
        """Bytes [start, stop) in chunks of about 1 MiB. Raises ObjectMissing, ObjectCorrupt when it is shorter, StoreFailed.

        A connection that breaks is made again where it broke: objects are immutable, so the rest is of the same one.
        """
        size = await self.size(key)
        stop = size if stop is None else stop
        if not 0 <= start <= stop <= size:
            raise ObjectCorrupt(f"object {key} has {size} bytes; [{start}, {stop}) is not in it")
        at, failures = start, 0
        while at < stop:  # stores refuse empty ranges
            try:
                async for chunk in self._read(key, at, stop):
                    at, failures = at + len(chunk), 0
                    yield chunk
            except StoreFailed as failure:
                failures += 1
                await _pause(failures, failure)

    async def _read(self, key: str, at: int, stop: int) -> Chunks:
        """Bytes [at, stop) of one answer; StoreFailed also when it ends early."""
        with told_as_ours("read", key):
            found = await obstore.get_async(self.backend, key, options={"range": (at, stop)})
            async for chunk in found.stream(min_chunk_size=READ_CHUNK):
                at += len(chunk)
                yield bytes(chunk)
        if at < stop:
            raise StoreFailed(f"the object store ended its answer {stop - at} bytes early, reading {key}")

    async def delete(self, key: str) -> None:
        """Remove the object. Deleting what is not there is success. Raises StoreFailed."""
        try:
            with told_as_ours("delete", key):
                await obstore.delete_async(self.backend, key)
        except ObjectMissing:
            return

    async def remove_abandoned(self, now_us: int) -> int:
        """Remove what a crash left of streams that never got their names. Returns how many there were."""
        return await self.streams.remove_abandoned(now_us)

    async def keys(self, prefix: str) -> AsyncIterator[str]:
        """The keys below a folder-like prefix, in no particular order."""
        async for found in self.listed(prefix):
            yield found.key

    async def listed(self, prefix: str, *, after: str = "") -> AsyncIterator[Listed]:
        """The objects below a folder-like prefix ("" is all) whose keys are greater than `after`, in no particular order.

        Raises StoreFailed.
        """
        with told_as_ours("list", prefix):
            async for page in obstore.list(self.backend, prefix=prefix or None, offset=after or None):
                for found in page:
                    written_us = int(found["last_modified"].timestamp() * 1_000_000)
                    yield Listed(key=found["path"], size=found["size"], written_us=written_us)

    async def page(self, after: str, limit: int) -> list[Listed]:
        """The `limit` objects whose keys come next after this one ("" is the beginning), in order. Raises StoreFailed."""
        found = self.listed("", after=after)
        if not self._is_ordered:
            everything = [each async for each in found]
            return heapq.nsmallest(limit, everything, key=lambda each: each.key)
        page: list[Listed] = []
        async for each in found:
            page.append(each)
            if len(page) == limit:
                break
        return page

    async def close(self) -> None:
        """Let go of threads and connections."""
        await self.streams.close()


async def _pause(failures: int, failure: StoreFailed) -> None:
    """Before trying again; raises the failure when there were enough in a row."""
    if failures >= TRIES:
        raise failure
    log.warning("object.again", failures=failures, error=str(failure))
    await asyncio.sleep(FIRST_PAUSE_S * 2**failures * (0.5 + random.random() / 2))


class _Meter:
    """Counts and hashes a stream as it passes."""

    def __init__(self, source: Chunks) -> None:
        self._source = source
        self.size = 0
        self.digest = hashlib.sha256()

    async def chunks(self) -> Chunks:
        async for chunk in self._source:
            self.size += len(chunk)
            self.digest.update(chunk)
            yield chunk


async def _measured(key: str, chunks: Chunks) -> Stored:
    meter = _Meter(chunks)
    async for _ in meter.chunks():
        pass
    return Stored(key=key, size=meter.size, sha256=meter.digest.hexdigest())


def require_committed(content: bytes, size: int | None, sha256: str) -> bytes:
    """`content`, if it has this size (None: any) and hash. Raises ObjectCorrupt."""
    found = hashlib.sha256(content).hexdigest()
    if size not in (None, len(content)):
        raise ObjectCorrupt(f"{len(content)} bytes, not the {size} that were committed")
    if found != sha256:
        raise ObjectCorrupt(f"{len(content)} bytes with sha256 {found}, not {sha256}")
    return content


def _check_key(key: str) -> None:
    # obstore would silently drop a leading slash: two keys would name one object
    parts = key.split("/")
    if not key.isprintable() or any(part in ("", ".", "..") or "#" in part or "\\" in part for part in parts):
        raise ValueError(f"object key {key!r} is not a clean relative path; use names joined by single slashes")
