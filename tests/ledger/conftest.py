"""Fixtures of the ledger's tests."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import SQLModel

from broker.database import Database, sqlite_url
from ledger.tables import Entry, Head, HoldState, Posting
from ledger.triggers import create_statements

Scratch = Callable[[], AbstractAsyncContextManager[AsyncSession]]
NewBooks = Callable[[], AbstractAsyncContextManager[Database]]


@pytest.fixture
def new_books(tmp_path: Path) -> NewBooks:
    """A factory of empty books: the ledger's tables and triggers alone."""
    count = 0

    @asynccontextmanager
    async def make() -> AsyncIterator[Database]:
        nonlocal count
        count += 1
        database = Database(sqlite_url(tmp_path / f"books{count}.db"))
        tables = [SQLModel.metadata.tables[str(table.__tablename__)] for table in (Entry, Posting, HoldState, Head)]
        async with database.transaction() as session:
            connection = await session.connection()
            await connection.run_sync(lambda sync: SQLModel.metadata.create_all(sync, tables=tables))
            for statement in create_statements("sqlite"):
                await session.execute(text(statement))
        yield database
        await database.close()

    return make


@pytest.fixture
def scratch(books: Database) -> Scratch:
    """Sessions on empty books whose writes are rolled back at the end: fresh books for each example of a property."""

    @asynccontextmanager
    async def make() -> AsyncIterator[AsyncSession]:
        async with AsyncSession(books.engine, expire_on_commit=False) as session:
            yield session
            await session.rollback()

    return make


@pytest.fixture
async def books(new_books: NewBooks) -> AsyncIterator[Database]:
    """Empty books."""
    async with new_books() as database:
        yield database
