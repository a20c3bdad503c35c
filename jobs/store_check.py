"""Whether a store does what correctness rests on, found out by trying: names are given once, and bytes come back.

A store that silently overwrites would let two workers' parts replace one another; it is refused before anything is kept in it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from ulid import ULID

from jobs.errors import ObjectExists, StoreUnfit
from jobs.objects import ObjectStore, Stored
from jobs.streams import Chunks

CHECKS = ".check"  # no project is called so


async def check_store(store: ObjectStore) -> None:
    """Create, create again, read and delete, as a whole and in parts. Raises StoreUnfit and StoreFailed."""
    whole, in_parts = f"{CHECKS}/{ULID()}", f"{CHECKS}/{ULID()}"
    try:
        await store.put(whole, b"once")
        await _must_be_refused(lambda: store.put(whole, b"twice"), "a second create-only put of one name")
        await store.put_stream(in_parts, _of(b"once"), in_parts=True)
        await _must_be_refused(
            lambda: store.streams.write(in_parts, _of(b"twice"), in_parts=True), "a second create-only upload in parts"
        )
        for key in (whole, in_parts):
            if await store.get(key) != b"once":
                raise StoreUnfit(
                    f"the object store gave back other bytes than were written to {key}; use another store"
                )
    finally:
        await store.delete(whole)
        await store.delete(in_parts)


async def _must_be_refused(again: Callable[[], Awaitable[Stored | None]], what: str) -> None:
    try:
        await again()
    except ObjectExists:
        return
    raise StoreUnfit(
        f"the object store accepted {what}: it overwrites, and results could be lost; use a store (or a version of it) that "
        "honours If-None-Match: * for puts and for the completion of multipart uploads"
    )


async def _of(content: bytes) -> Chunks:
    yield content
