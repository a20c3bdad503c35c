"""Fixtures that every room's tests share."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from broker.database import Database, sqlite_url
from broker.migrate import upgrade


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    """A migrated, empty database of its own."""
    database = Database(sqlite_url(tmp_path / "broker.db"))
    await upgrade(database.url)
    yield database
    await database.close()
