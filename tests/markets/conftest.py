"""What the markets tests share: a database of its own and offers that read like offers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlmodel import SQLModel

import markets.tables  # noqa: F401  (registers the room's tables)
from broker.database import Database, sqlite_url


@pytest.fixture
async def book(tmp_path: Path) -> AsyncIterator[Database]:
    """A database with the tables of this room (the shared, migrated `database` needs all rooms to be there)."""
    database = Database(sqlite_url(tmp_path / "book.db"))
    async with database.engine.begin() as connection:
        await connection.run_sync(SQLModel.metadata.create_all)
    yield database
    await database.close()
