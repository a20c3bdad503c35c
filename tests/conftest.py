"""Fixtures that every room's tests share."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from broker.database import Database, sqlite_url
from broker.migrate import upgrade


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database file with the newest schema, made once: migrating takes 100 times longer than copying."""
    file = tmp_path_factory.mktemp("migrated") / "broker.db"
    asyncio.run(upgrade(sqlite_url(file)))
    return file


@pytest.fixture
async def database(migrated: Path, tmp_path: Path) -> AsyncIterator[Database]:
    """A migrated, empty database of its own."""
    shutil.copy(migrated, tmp_path / "broker.db")
    database = Database(sqlite_url(tmp_path / "broker.db"))
    yield database
    await database.close()
