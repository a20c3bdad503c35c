"""Object stores for tests: folders, or with BROKER_TEST_OBJECTS=s3 a real S3 server, =azure Azurite."""

from __future__ import annotations

import functools
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import botocore.session
import pytest

from broker.object_store import store_of
from broker.settings import ObjectSettings
from jobs.objects import ObjectStore
from tests.support.azurite import Azurite, azurite
from tests.support.s3_server import S3Server, s3_server

KIND = os.environ.get("BROKER_TEST_OBJECTS", "local")


def s3_of(server: S3Server, **changes: Any) -> ObjectStore:
    """An empty store, opened as the broker opens it."""
    wanted = server.settings() | changes
    return store_of(ObjectSettings(**wanted), Path())


def azure_of(server: Azurite, **changes: Any) -> ObjectStore:
    """An empty store in a container of Azure's, opened as the broker opens it."""
    return store_of(ObjectSettings(**server.settings() | changes), Path())


async def keys_of(store: ObjectStore) -> set[str]:
    """The keys of all objects that there are."""
    return {key async for key in store.keys("")}


async def damage(store: ObjectStore, key: str, content: bytes) -> None:
    """Other bytes under the name of an object: what no client of ours can do, but a disk or a person may."""
    await store.delete(key)
    await store.put(key, content)


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """An S3 server, started when the first test of the session asks for it."""
    with pytest.MonkeyPatch.context() as patch, s3_server(tmp_path_factory.mktemp("s3")) as server:
        # Each of our clients reads botocore's description of S3 anew, a megabyte of JSON: here there are many clients.
        patch.setattr("botocore.session.create_loader", functools.cache(botocore.session.create_loader))
        yield server


@pytest.fixture(scope="session")
def azure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Azurite]:
    """Azurite, started when the first test of the session asks for it."""
    with azurite(tmp_path_factory.mktemp("azurite")) as server:
        yield server


def opened(kind: str, request: pytest.FixtureRequest, folder: Path, **changes: Any) -> ObjectStore:
    """An empty store of this kind."""
    match kind:
        case "s3":
            return s3_of(request.getfixturevalue("s3"), **changes)
        case "azure":
            return azure_of(request.getfixturevalue("azure"))
    return ObjectStore.local(folder / "objects")


@pytest.fixture
async def object_store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[ObjectStore]:
    """An empty store. In S3 too workers go through the broker, so that the same tests hold of both."""
    assert KIND in ("local", "s3", "azure"), f"BROKER_TEST_OBJECTS is {KIND!r}; it may be local, s3 or azure"
    store = opened(KIND, request, tmp_path, direct=False)
    yield store
    await store.close()
