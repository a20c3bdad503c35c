"""Databases for tests: SQLite files, or with BROKER_TEST_DATABASE_URL databases of a PostgreSQL server.

The variable names a database that may be connected to, by a user who may create others:
`postgresql://broker@127.0.0.1:5432/postgres`. Each test gets a database of its own, copied from a migrated template.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql
from sqlalchemy import text
from sqlalchemy.engine import make_url

from broker.database import Database, sqlite_url
from broker.migrate import upgrade

SERVER = os.environ.get("BROKER_TEST_DATABASE_URL", "")
DIALECT = "postgresql" if SERVER else "sqlite"


class Databases(ABC):
    """Makes databases, each under a name that is used once; `close` removes what was made and not yet dropped."""

    def __init__(self) -> None:
        self._made = 0
        self._template: str | None = None

    def empty(self) -> str:
        """The URL of a new database without any table."""
        self._made += 1
        return self._create(self._made)

    def migrated(self) -> str:
        """The URL of a new database with the newest schema. Migrating takes 100 times longer than copying."""
        if self._template is None:
            self._template = self.empty()
            asyncio.run(upgrade(self._template))
        self._made += 1
        return self._copy(self._template, self._made)

    @abstractmethod
    def drop(self, url: str) -> None: ...

    @abstractmethod
    def close(self) -> None: ...

    @abstractmethod
    def _create(self, number: int) -> str: ...

    @abstractmethod
    def _copy(self, template: str, number: int) -> str: ...


class Files(Databases):
    """SQLite files in one folder."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder

    def _create(self, number: int) -> str:
        return sqlite_url(self._folder / f"{number}.db")

    def _copy(self, template: str, number: int) -> str:
        url = self._create(number)
        shutil.copy(_name(template), _name(url))
        return url

    def drop(self, url: str) -> None:
        for suffix in ("", "-wal", "-shm"):
            Path(_name(url) + suffix).unlink(missing_ok=True)

    def close(self) -> None:
        shutil.rmtree(self._folder)


class Server(Databases):
    """Databases of one PostgreSQL server. The process's id in the name keeps pytest-xdist's workers apart."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self._url = make_url(url)
        self._names: set[str] = set()

    def _create(self, number: int) -> str:
        return self._new(number, sql.SQL("CREATE DATABASE {}"))

    def _copy(self, template: str, number: int) -> str:
        return self._new(number, sql.SQL("CREATE DATABASE {} TEMPLATE {}"), sql.Identifier(_name(template)))

    def _new(self, number: int, statement: sql.SQL, *names: sql.Identifier) -> str:
        name = f"broker_test_{os.getpid()}_{number}"
        self._run(statement.format(sql.Identifier(name), *names))
        self._names.add(name)
        return self._url.set(database=name).render_as_string(hide_password=False)

    def drop(self, url: str) -> None:
        name = _name(url)
        self._run(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))
        self._names.remove(name)

    def close(self) -> None:
        for name in sorted(self._names):
            self.drop(self._url.set(database=name).render_as_string(hide_password=False))

    def _run(self, statement: sql.Composed) -> None:
        plain = self._url.set(drivername="postgresql").render_as_string(hide_password=False)
        with psycopg.connect(plain, autocommit=True) as connection:
            connection.execute(statement)


def open_databases(folder: Path) -> Databases:
    """On the server that BROKER_TEST_DATABASE_URL names, else SQLite files in `folder`."""
    return Server(SERVER) if SERVER else Files(folder)


async def until_it_waits(database: Database, task: asyncio.Task[Any]) -> None:
    """Go on once `task`'s transaction waits for a lock of ours, or the task has ended. With SQLite that is at once: no other
    transaction begins before ours has ended."""
    waiting = text(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    )
    while database.engine.dialect.name == "postgresql" and not task.done():
        async with database.transaction() as session:
            if await session.scalar(waiting):
                return
        await asyncio.sleep(0.01)


def _name(url: str) -> str:
    """The database's name; with SQLite the file's path."""
    name = make_url(url).database
    assert name, f"the URL {url} names no database"
    return name
