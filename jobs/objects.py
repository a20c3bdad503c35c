"""The object store: immutable objects under keys that are written once.

One class over obstore for every kind of store. Create-only writes are the one primitive that local folders and S3 share
(no etag updates, attributes or renames are used for correctness). obstore's errors are of several families; here they
are three: ObjectExists, ObjectMissing, ObjectCorrupt. Anything else (network, permissions) is obstore's own `BaseError`
and nothing is known about the object.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import msgspec
import obstore
from obstore.exceptions import AlreadyExistsError
from obstore.store import LocalStore
from obstore.store import ObjectStore as Backend

from jobs.errors import ObjectCorrupt, ObjectExists, ObjectMissing

WRITE_CHUNK = 5 * 1024 * 1024  # S3's smallest part of a multipart upload
WRITE_CONCURRENCY = 2  # each costs a chunk of memory
READ_CHUNK = 1024 * 1024

Chunks = AsyncIterator[bytes]


class Stored(msgspec.Struct, frozen=True, kw_only=True):
    """An object as it was written: `size` in bytes, hex `sha256` of the content."""

    key: str
    size: int
    sha256: str


class ObjectStore:
    """Objects of one backend. Keys are relative paths; a key that is no clean path raises ValueError.

    Reads and writes hold at most a few chunks in memory, whatever the object's size.
    """

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    @classmethod
    def local(cls, folder: Path) -> ObjectStore:
        """A folder on this machine, made if it is missing."""
        return cls(LocalStore(folder, mkdir=True))

    async def put(self, key: str, content: bytes) -> Stored:
        """Create the object. Raises ObjectExists."""
        _check_key(key)
        try:
            await obstore.put_async(self._backend, key, content, mode="create")
        except AlreadyExistsError as error:
            raise ObjectExists(f"object {key} exists; objects are immutable") from error
        return Stored(key=key, size=len(content), sha256=hashlib.sha256(content).hexdigest())

    async def put_stream(self, key: str, chunks: Chunks) -> Stored:
        """Create the object from a stream. Raises ObjectExists, and whatever `chunks` raises; then nothing is there."""
        _check_key(key)
        meter = _Meter(chunks)
        try:
            await obstore.put_async(
                self._backend,
                key,
                meter.chunks(),
                mode="create",
                use_multipart=True,
                chunk_size=WRITE_CHUNK,
                max_concurrency=WRITE_CONCURRENCY,
            )
        except AlreadyExistsError as error:
            raise ObjectExists(f"object {key} exists; objects are immutable") from error
        return Stored(key=key, size=meter.size, sha256=meter.digest.hexdigest())

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
        """Bytes of the object (HEAD). Raises ObjectMissing."""
        try:
            return (await obstore.head_async(self._backend, key))["size"]
        except FileNotFoundError as error:
            raise ObjectMissing(f"no object {key}") from error

    async def get(self, key: str, start: int = 0, stop: int | None = None) -> bytes:
        """Bytes [start, stop) of the object, or all. Raises ObjectMissing, and ObjectCorrupt when it is shorter."""
        return b"".join([chunk async for chunk in self.stream(key, start, stop)])

    async def stream(self, key: str, start: int = 0, stop: int | None = None) -> Chunks:
        """Bytes [start, stop) in chunks of about 1 MiB. Raises ObjectMissing, and ObjectCorrupt when it is shorter."""
        size = await self.size(key)
        stop = size if stop is None else stop
        if not 0 <= start <= stop <= size:
            raise ObjectCorrupt(f"object {key} has {size} bytes; [{start}, {stop}) is not in it")
        if start == stop:
            return  # stores refuse empty ranges
        try:
            found = await obstore.get_async(self._backend, key, options={"range": (start, stop)})
        except FileNotFoundError as error:
            raise ObjectMissing(f"no object {key}") from error
        async for chunk in found.stream(min_chunk_size=READ_CHUNK):
            yield bytes(chunk)

    async def delete(self, key: str) -> None:
        """Remove the object. Deleting what is not there is success."""
        try:
            await obstore.delete_async(self._backend, key)
        except FileNotFoundError:
            return

    async def keys(self, prefix: str) -> AsyncIterator[str]:
        """The keys below a folder-like prefix, in no particular order."""
        async for page in obstore.list(self._backend, prefix=prefix):
            for found in page:
                yield found["path"]


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


def _check_key(key: str) -> None:
    # obstore would silently drop a leading slash: two keys would name one object
    parts = key.split("/")
    if not key.isprintable() or any(part in ("", ".", "..") or "#" in part or "\\" in part for part in parts):
        raise ValueError(f"object key {key!r} is not a clean relative path; use names joined by single slashes")
