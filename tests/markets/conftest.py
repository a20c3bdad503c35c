"""What the markets tests share: a database of its own, and real sandbox processes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from botocore.loaders import Loader
from sqlmodel import SQLModel

import markets.tables  # noqa: F401  (registers the room's tables)
from broker.database import Database
from tests.markets.aws_rig import Aws, moto
from tests.markets.own_hosts import SSHD, HostRig, host_in
from tests.markets.rigs import Sandbox, sandbox_in


@pytest.fixture
async def book(empty_url: str) -> AsyncIterator[Database]:
    """A database with the tables of this room (the shared, migrated `database` needs all rooms to be there)."""
    database = Database(empty_url)
    async with database.engine.begin() as connection:
        await connection.run_sync(SQLModel.metadata.create_all)
    yield database
    await database.close()


@pytest.fixture(scope="session")
def shared_sandbox(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    """One sandbox for all tests that leave it alive and well."""
    yield from sandbox_in(tmp_path_factory.mktemp("shared") / "sandbox")


@pytest.fixture
def own_sandbox(tmp_path: Path) -> Iterator[Sandbox]:
    """A sandbox of the test's own, to be killed or examined."""
    yield from sandbox_in(tmp_path / "sandbox")


@pytest.fixture
def host(tmp_path: Path) -> Iterator[HostRig]:
    """An own host behind a real sshd."""
    if SSHD is None:
        pytest.skip("sshd is not installed (Debian: openssh-server)")
    with host_in(tmp_path / "host") as rig:
        yield rig


@pytest.fixture(scope="session")
def shared_host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostRig]:
    """One host for all tests that leave it in order."""
    if SSHD is None:
        pytest.skip("sshd is not installed (Debian: openssh-server)")
    with host_in(tmp_path_factory.mktemp("shared_host") / "host", slots=100) as rig:
        yield rig


@pytest.fixture(scope="session")
def moto_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """One moto for all tests; each has an owner of its own, or leaves nothing running."""
    with moto(tmp_path_factory.mktemp("moto")) as url:
        yield url


@pytest.fixture(scope="session")
def loader() -> Loader:
    """What boto3 has read of its services' descriptions, once for all tests."""
    return Loader(include_default_search_paths=True)


@pytest.fixture
async def aws(moto_url: str, loader: Loader) -> AsyncIterator[Aws]:
    """AWS as we see it: moto, and what it lacks."""
    async with Aws(moto_url, loader) as proxy:
        yield proxy
