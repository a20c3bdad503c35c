"""The object store: written once, read in pieces, one vocabulary of errors; the same for a folder and for S3."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest
from ulid import ULID

from jobs.errors import ObjectCorrupt, ObjectExists, ObjectMissing
from jobs.objects import ObjectStore
from tests.support.object_stores import KIND, opened

DAY_US = 86_400 * 1_000_000


@pytest.fixture(params=["local", "s3"] if KIND != "azure" else ["azure"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[ObjectStore]:
    store = opened(request.param, request, tmp_path)
    yield store
    await store.close()


async def stream(*chunks: bytes) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


async def test_what_was_put_is_read_back_whole_and_in_ranges(store: ObjectStore) -> None:
    stored = await store.put("p/b/x", b"0123456789")
    assert (stored.size, stored.sha256) == (10, hashlib.sha256(b"0123456789").hexdigest())
    assert await store.get("p/b/x") == b"0123456789"
    assert await store.get("p/b/x", 3, 5) == b"34"
    assert await store.get("p/b/x", 10, 10) == b""
    assert await store.size("p/b/x") == 10


async def test_an_object_is_written_once(store: ObjectStore) -> None:
    await store.put("p/x", b"first")
    with pytest.raises(ObjectExists, match="p/x"):
        await store.put("p/x", b"first")
    with pytest.raises(ObjectExists):
        await store.put_stream("p/x", stream(b"second"))
    assert await store.get("p/x") == b"first"


async def test_of_many_writers_one_wins(store: ObjectStore) -> None:
    results = await asyncio.gather(*(store.put("p/x", str(n).encode()) for n in range(40)), return_exceptions=True)
    assert sum(isinstance(result, ObjectExists) for result in results) == 39
    (winner,) = (result for result in results if not isinstance(result, BaseException))
    assert hashlib.sha256(await store.get("p/x")).hexdigest() == winner.sha256


async def test_a_stream_of_many_chunks_arrives_whole(store: ObjectStore) -> None:
    chunks = [bytes([n]) * 1_000_003 for n in range(13)]
    stored = await store.put_stream("p/large", stream(*chunks, b""))
    assert (stored.size, stored.sha256) == (13 * 1_000_003, hashlib.sha256(b"".join(chunks)).hexdigest())
    read = [chunk async for chunk in store.stream("p/large")]
    assert b"".join(read) == b"".join(chunks)
    assert len(read) > 4, "it is not read in one piece"


async def test_an_empty_stream_is_an_empty_object(store: ObjectStore) -> None:
    assert (await store.put_stream("p/empty", stream())).size == 0
    assert await store.get("p/empty") == b""


@pytest.mark.parametrize("before", [0, 1, 12])
async def test_a_stream_that_breaks_leaves_no_object(store: ObjectStore, tmp_path: Path, before: int) -> None:
    async def broken() -> AsyncIterator[bytes]:
        for _ in range(before):
            yield b"x" * 1_000_000
        raise ConnectionResetError("client went away")

    with pytest.raises(ConnectionResetError, match="client went away"):
        await store.put_stream("p/x", broken())
    with pytest.raises(ObjectMissing):
        await store.size("p/x")
    assert [found async for found in store.listed("")] == []
    assert [found for found in (tmp_path / "objects").rglob("*") if found.is_file()] == []
    assert await store.remove_abandoned(time.time_ns() // 1_000 + 2 * DAY_US) == 0, "nor the parts of one"


async def test_writing_the_same_again_is_success_and_other_bytes_are_not(store: ObjectStore) -> None:
    first = await store.put_same("p/x", lambda: stream(b"ab", b"c"))
    assert await store.put_same("p/x", lambda: stream(b"a", b"bc")) == first
    with pytest.raises(ObjectExists, match="other content"):
        await store.put_same("p/x", lambda: stream(b"abd"))
    assert await store.get("p/x") == b"abc"


async def test_a_missing_object_is_missing_in_every_call(store: ObjectStore) -> None:
    with pytest.raises(ObjectMissing, match="p/none"):
        await store.get("p/none")
    with pytest.raises(ObjectMissing):
        await store.size("p/none")
    with pytest.raises(ObjectMissing):
        await store.get("p/none", 0, 1)


@pytest.mark.parametrize(("start", "stop"), [(0, 4), (3, 4), (2, 1), (-1, 2)])
async def test_a_range_outside_the_object_is_corruption_not_a_short_answer(
    store: ObjectStore, start: int, stop: int
) -> None:
    await store.put("p/x", b"abc")
    with pytest.raises(ObjectCorrupt, match="3 bytes"):
        await store.get("p/x", start, stop)


async def test_deleting_is_idempotent(store: ObjectStore) -> None:
    await store.put("p/x", b"abc")
    await store.delete("p/x")
    await store.delete("p/x")
    with pytest.raises(ObjectMissing):
        await store.get("p/x")


async def test_keys_lists_below_a_prefix(store: ObjectStore) -> None:
    for key in ("p/a/1", "p/a/2", "p/ab/3", "q/4"):
        await store.put(key, b"")
    assert sorted([key async for key in store.keys("p/a")]) == ["p/a/1", "p/a/2"]
    assert [key async for key in store.keys("nothing")] == []


@pytest.mark.parametrize("key", ["", "/a", "a/", "a//b", "../a", "a/../b", "a/./b", "a\0b", "a\\b", "a#1", "a\nb"])
async def test_a_key_that_is_no_clean_path_is_refused(tmp_path: Path, key: str) -> None:
    store = ObjectStore.local(tmp_path)
    with pytest.raises(ValueError, match="not a clean relative path"):
        await store.put(key, b"")


@pytest.mark.parametrize(
    ("store", "mib"),
    [("local", 64), *(pytest.param(kind, 300, marks=pytest.mark.objects) for kind in ("local", "s3"))],
    indirect=["store"],
)
async def test_a_long_stream_is_never_held_in_memory(store: ObjectStore, mib: int) -> None:
    """obstore's own create-only mode holds all of it: 300 MB of upload were 300 MB of broker."""
    await store.put_stream(
        "p/first", stream(bytes(20_000_000))
    )  # libraries, threads and connections have their memory now

    async def long() -> AsyncIterator[bytes]:
        for number in range(4 * mib):
            yield bytes([number % 256]) * (256 * 1024)

    before = psutil.Process().memory_info().rss
    most = before

    async def watched() -> AsyncIterator[bytes]:
        nonlocal most
        async for chunk in long():
            yield chunk
            most = max(most, psutil.Process().memory_info().rss)

    stored = await store.put_stream("p/long", watched())
    assert stored.size == mib * 1024 * 1024
    assert most - before < 32 * 1024 * 1024
    with pytest.raises(ObjectExists):
        await store.put_stream("p/long", long())
    digest, before = hashlib.sha256(), psutil.Process().memory_info().rss
    async for chunk in store.stream("p/long"):
        digest.update(chunk)
    assert digest.hexdigest() == stored.sha256
    assert psutil.Process().memory_info().rss - before < 32 * 1024 * 1024


async def test_two_streams_to_one_name_make_one_object(store: ObjectStore) -> None:
    async def stream(letter: bytes) -> AsyncIterator[bytes]:
        for _ in range(10):
            await asyncio.sleep(0)
            yield letter * 1000

    outcomes = await asyncio.gather(
        store.put_stream("p/x", stream(b"a")), store.put_stream("p/x", stream(b"b")), return_exceptions=True
    )
    assert sorted(type(each).__name__ for each in outcomes) == ["ObjectExists", "Stored"]
    assert len(set(await store.get("p/x"))) == 1
    assert [key async for key in store.keys("")] == ["p/x"]


async def test_what_a_crash_left_of_a_stream_is_removed_after_a_day(tmp_path: Path) -> None:
    store = ObjectStore.local(tmp_path)
    left = tmp_path / ".incoming"
    left.mkdir()
    begun = ULID()
    (left / f"{begun}").write_bytes(b"whole, but without its name")
    (left / f"{begun}#1").write_bytes(b"half")
    assert await store.remove_abandoned(begun.milliseconds * 1_000 + 3_600 * 1_000_000) == 0
    assert await store.remove_abandoned(begun.milliseconds * 1_000 + 90_000 * 1_000_000) == 2
    assert list(left.iterdir()) == []
