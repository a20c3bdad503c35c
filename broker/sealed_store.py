"""The object store behind a seal: what is written is sealed with its owner's key, what is read is opened, by whole objects or
ranges, in a few chunks of memory. Names, and who may have which, stay as they are.

Sizes and hashes that this store tells are of the plaintext, as everywhere. A part that a worker sealed is known by the size and
hash of its sealed bytes, which a store can verify itself; both are what the seal makes authentic. Whether an object is sealed
is asked of the owner's row, never of the object: what lies there in clear instead does not open.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from broker.object_keys import ObjectKeys, ObjectSecret
from jobs.errors import ObjectCorrupt, ObjectTampered
from jobs.keys import name_of
from jobs.objects import Listed, ObjectStore, Stored, require_committed
from jobs.streams import Chunks
from workers.agent import sealing
from workers.agent.sealing import HEADER, Opener, SealBroken, Sealer, Span

# Heads of inputs, which are read range by range; they are never written anew under one name.
HEADS = 1_000
# Below this a seal takes less than the way to a thread and back.
INLINE = 1024 * 1024


@dataclass(frozen=True, slots=True)
class SealedRange:
    """How the bytes [start, stop) of a sealed object may be read by somebody who is given the keys of their segments alone."""

    span: Span
    context: str
    keys: tuple[bytes, ...]


class SealedStore(ObjectStore):
    """`inner` holds what is sealed; `secrets` say with what."""

    def __init__(self, inner: ObjectStore, secrets: ObjectKeys) -> None:
        super().__init__(inner.backend, inner.streams, creating=inner.creating, direct=inner.direct)
        self.inner = inner
        self.secrets = secrets
        self._heads: OrderedDict[str, tuple[bytes, int]] = OrderedDict()

    async def put(self, key: str, content: bytes) -> Stored:
        """See ObjectStore. Raises KeyDestroyed, too."""
        secret = await self._secret(key)
        if secret is None:
            return await self.inner.put(key, content)
        if len(content) < INLINE:
            sealed = sealing.seal(secret.key, secret.context, content)
        else:
            sealed = await asyncio.to_thread(sealing.seal, secret.key, secret.context, content)
        await self.inner.put(key, sealed)
        return Stored(key=key, size=len(content), sha256=hashlib.sha256(content).hexdigest())

    async def put_stream(self, key: str, chunks: Chunks, *, in_parts: bool = False) -> Stored:
        """See ObjectStore. Raises KeyDestroyed, too."""
        secret = await self._secret(key)
        if secret is None:
            return await self.inner.put_stream(key, chunks, in_parts=in_parts)
        size, digest = 0, hashlib.sha256()

        async def sealed() -> Chunks:
            nonlocal size
            sealer = Sealer(secret.key, secret.context)
            yield sealer.header
            async for chunk in chunks:
                size += len(chunk)
                digest.update(chunk)
                if boxes := sealer.add(chunk):
                    yield boxes
            yield sealer.end()

        await self.inner.put_stream(key, sealed(), in_parts=in_parts)
        return Stored(key=key, size=size, sha256=digest.hexdigest())

    async def size(self, key: str) -> int:
        """See ObjectStore. Raises ObjectTampered and KeyDestroyed, too."""
        size = await self.inner.size(key)
        if await self._secret(key) is None:
            return size
        with told_as_tampered(key):
            return sealing.plain_size(size)

    async def holds(self, key: str, size: int, sha256: str) -> bool:
        """Whether the object opens and holds these bytes; of a part whether a worker stored these very bytes, which are looked
        into when they are read. See ObjectStore."""
        secret, stored = await self._secret(key), await self.inner.size(key)
        if secret is None or (stored == size and _is_part(key)):
            return await self.inner.holds(key, size, sha256)
        if stored != sealing.sealed_size(size):
            return False
        digest = hashlib.sha256()
        try:
            async for chunk in self.stream(key):
                digest.update(chunk)
        except ObjectTampered:
            return False
        return digest.hexdigest() == sha256

    async def committed(self, key: str, size: int | None, sha256: str) -> bytes:
        """See ObjectStore: the plaintext, where these are the sealed bytes or what they hold."""
        secret = await self._secret(key)
        if secret is None:
            return await self.inner.committed(key, size, sha256)
        return await asyncio.to_thread(_opened, key, secret, await self.inner.get(key), size, sha256)

    async def stream(self, key: str, start: int = 0, stop: int | None = None) -> Chunks:
        """See ObjectStore. Raises ObjectTampered, before a byte of the segment in question, and KeyDestroyed."""
        secret = await self._secret(key)
        if secret is None:
            async for chunk in self.inner.stream(key, start, stop):
                yield chunk
            return
        header, size = await self._head(key)
        stop = size if stop is None else stop
        if not 0 <= start <= stop <= size:
            raise ObjectCorrupt(f"object {key} has {size} bytes; [{start}, {stop}) is not in it")
        with told_as_tampered(key):
            of_object = sealing.object_key(secret.key, header, secret.context)
        if start == stop and size:
            return
        # of an empty object its one segment is read, too: that it is empty must be authentic
        span = sealing.span(start, stop, size) if size else Span(0, 0, True, HEADER, sealing.sealed_size(0), 0, 0)
        opener = Opener(
            lambda number: sealing.segment_key(of_object, number), secret.context, span.first, span.last, span.is_end
        )
        at, end = -span.skip, span.length
        async for plain in self._opened(key, opener, span):
            wanted = plain[max(0, -at) : max(0, end - at)]
            at += len(plain)
            if wanted:
                yield wanted

    async def _opened(self, key: str, opener: Opener, span: Span) -> AsyncIterator[bytes]:
        async for chunk in self.inner.stream(key, span.at, span.until):
            with told_as_tampered(key):
                plain = opener.add(chunk)
            yield plain
        with told_as_tampered(key):
            plain = opener.end()
        yield plain

    async def sealed_range(self, key: str, start: int, stop: int) -> SealedRange | None:
        """What somebody must be given who is to read [start, stop) from `inner`; None when the object is not sealed.

        Raises as `stream`."""
        secret = await self._secret(key)
        if secret is None:
            return None
        header, size = await self._head(key)
        if not 0 <= start < stop <= size:
            raise ObjectCorrupt(f"object {key} has {size} bytes; [{start}, {stop}) is not in it")
        span = sealing.span(start, stop, size)
        with told_as_tampered(key):
            of_object = sealing.object_key(secret.key, header, secret.context)
        keys = tuple(sealing.segment_key(of_object, number) for number in range(span.first, span.last + 1))
        return SealedRange(span, secret.context, keys)

    async def is_sealed(self, key: str) -> bool:
        """Whether the object of this name is sealed, or would be. Raises KeyDestroyed."""
        return await self._secret(key) is not None

    async def delete(self, key: str) -> None:
        """See ObjectStore."""
        self._heads.pop(key, None)
        await self.inner.delete(key)

    async def listed(self, prefix: str, *, after: str = "") -> AsyncIterator[Listed]:
        """See ObjectStore; sizes are those of what is stored."""
        async for each in self.inner.listed(prefix, after=after):
            yield each

    async def close(self) -> None:
        """See ObjectStore."""
        await self.inner.close()

    async def _secret(self, key: str) -> ObjectSecret | None:
        name = name_of(key)
        return None if name is None else await self.secrets.secret_of(name, key)

    async def _head(self, key: str) -> tuple[bytes, int]:
        """The object's header, and how much plaintext it holds."""
        if key in self._heads:
            return self._heads[key]
        with told_as_tampered(key):
            size = sealing.plain_size(await self.inner.size(key))
        head = (await self.inner.get(key, 0, HEADER), size)
        name = name_of(key)
        if name is not None and name.kind in ("files", "uploads"):
            self._heads[key] = head
            while len(self._heads) > HEADS:
                self._heads.popitem(last=False)
        return head


def _is_part(key: str) -> bool:
    name = name_of(key)
    return name is not None and name.kind == "parts"


def _opened(key: str, secret: ObjectSecret, stored: bytes, size: int | None, sha256: str) -> bytes:
    """Of the whole object: the sealed bytes that a worker committed, or those that hold what it committed."""
    with told_as_tampered(key):
        plain = sealing.opened(secret.key, secret.context, stored)
    if size in (None, len(stored)) and hashlib.sha256(stored).hexdigest() == sha256:
        return plain
    return require_committed(plain, size, sha256)


@contextmanager
def told_as_tampered(key: str) -> Iterator[None]:
    """Raises ObjectTampered for SealBroken."""
    try:
        yield
    except SealBroken as broken:
        raise ObjectTampered(f"object {key} is not what was sealed: {broken}") from broken
