"""Fixtures of the ledger's tests."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import SQLModel

from broker.database import Database
from ledger import seal_triggers, triggers
from tests.support.databases import Databases

Scratch = Callable[[], AbstractAsyncContextManager[AsyncSession]]
NewBooks = Callable[[], AbstractAsyncContextManager[Database]]


@pytest.fixture
def new_books(databases: Databases) -> NewBooks:
    """A factory of empty books: the ledger's tables and triggers alone."""

    @asynccontextmanager
    async def make() -> AsyncIterator[Database]:
        url = databases.empty()
        database = Database(url)
        tables = [table for name, table in SQLModel.metadata.tables.items() if name.startswith("ledger_")]
        dialect = database.engine.dialect.name
        async with database.transaction() as session:
            connection = await session.connection()
            await connection.run_sync(lambda sync: SQLModel.metadata.create_all(sync, tables=tables))
            for statement in [*triggers.create_statements(dialect), *seal_triggers.create_statements(dialect)]:
                await session.execute(text(statement))
        yield database
        await database.close()
        databases.drop(url)

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
