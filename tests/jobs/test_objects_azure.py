"""Azure alone, as Azurite has it: what it must refuse. What all stores have in common is asked by test_objects.py
(`make objects-azure`)."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator

import pytest

from jobs.errors import ObjectExists, StoreFailed
from jobs.objects import ObjectStore
from jobs.store_check import check_store
from jobs.streams import WRITE_CHUNK
from tests.support.azurite import Azurite
from tests.support.object_stores import azure_of, keys_of

pytestmark = pytest.mark.azure


@pytest.fixture
async def store(azure: Azurite) -> AsyncIterator[ObjectStore]:
    store = azure_of(azure)
    yield store
    await store.close()


async def test_a_fit_store_passes_the_check_and_nothing_is_left_of_it(store: ObjectStore) -> None:
    await check_store(store)
    assert await keys_of(store) == set()


@pytest.mark.parametrize("size", [WRITE_CHUNK - 1, WRITE_CHUNK, 2 * WRITE_CHUNK + 1])
async def test_streams_around_the_size_of_a_block_arrive_whole_and_once(store: ObjectStore, size: int) -> None:
    content = bytes(range(256)) * (size // 256 + 1)

    async def chunks() -> AsyncIterator[bytes]:
        yield content[:size]

    await store.put_stream("p/x", chunks())
    assert await store.get("p/x") == content[:size]
    with pytest.raises(ObjectExists):
        await store.put_stream("p/x", chunks())


async def test_of_two_streams_to_one_free_name_one_makes_it(store: ObjectStore) -> None:
    async def chunks(what: bytes) -> AsyncIterator[bytes]:
        yield what * (WRITE_CHUNK + 1)

    found = await asyncio.gather(
        *(store.put_stream("p/x", chunks(what)) for what in (b"a", b"b")), return_exceptions=True
    )
    assert sum(isinstance(each, ObjectExists) for each in found) == 1
    assert len(set(await store.get("p/x"))) == 1, "whole by one of them, and not of both"
    assert await keys_of(store) == {"p/x"}


async def test_a_signature_by_another_key_is_refused_and_said_so(azure: Azurite) -> None:
    wrong = base64.b64encode(b"another key, also thirty-two by.").decode()
    store = azure_of(azure, secret_access_key=wrong)
    with pytest.raises(StoreFailed, match="create"):
        await store.put("p/x", b"x")
    await store.close()
