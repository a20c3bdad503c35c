"""The one place where a transaction begins and ends (contract C7).

Room functions take an `AsyncSession` and never begin or commit. No network call is made inside `transaction`.
SQLite: WAL, one writer; every transaction is BEGIN IMMEDIATE, so that what was read cannot change before it is written.
"""

from __future__ import annotations

import copy
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sqlalchemy import event, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError, DisconnectionError, InterfaceError, InternalError, OperationalError
from sqlalchemy.exc import TimeoutError as NoConnection
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import ORMExecuteState, Session

from broker.settings import DatabaseSettings

Guard = Callable[[AsyncSession], Awaitable[None]]
_AT_THE_END = "acts at the transaction's end"
_REMEMBERED = "what is remembered beyond the transaction"
# The database is away, restarting, or has no connection to spare; it may have committed what was under way, or not.
# PostgreSQL reports a transaction that it ended for its silence, or a server that only reads, as internal errors.
UNAVAILABLE = (OperationalError, InterfaceError, InternalError, NoConnection)

DEFAULTS = DatabaseSettings()
# A database behind a network that broke silently is away after so long (libpq's parameters; the last is in milliseconds).
LIVELINESS = {
    "connect_timeout": 10,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 20_000,
}

# A connection that was used so lately is taken from the pool without asking whether it still is one. A database that
# restarted meanwhile is an error of the kind that callers answer with 503, or try again.
TRUSTED_S = 2.0


def sqlite_url(file: Path) -> str:
    return f"sqlite+aiosqlite:///{file}"


async def as_of_now(session: AsyncSession) -> None:
    """Everything that this transaction reads is of one moment. To be called before anything else; SQLite does so anyway.

    Without it, PostgreSQL shows each statement what was committed by then: a check of the books beside accruals would find
    entries that the head does not know.
    """
    if session.get_bind().dialect.name == "postgresql":
        await session.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ"))


def at_the_end(session: AsyncSession, name: str, act: Guard) -> None:
    """Have `act` done when the block of this session's `transaction` is over, before it is committed; once for each `name`.

    For what locks a row that everybody queues at: rows of one's own come first (broker/lock_order.py).
    """
    acts: dict[str, Guard] = session.info[
        _AT_THE_END
    ]  # KeyError: nobody would do it, the session is not of `transaction`
    acts[name] = act


def remembered(session: AsyncSession) -> dict[str, Any]:
    """What this process remembers of the session's database beyond the transaction, by the name of what it is.

    Another process may have changed what it was made of: whoever uses it asks the database in each transaction whether it holds.
    """
    known: dict[str, Any] = session.info[_REMEMBERED]
    return known


class Unreachable(Exception):
    """A broker begins with a database, and this one does not answer, or does not let us in."""


class _Session(Session):
    """A session whose locking reads are fresh."""


@event.listens_for(_Session, "do_orm_execute")
def _refresh_what_is_locked(statement: ORMExecuteState) -> None:
    """SELECT … FOR UPDATE waits for whoever changes a row, and then says what the row is. Without this, a session that had read
    it before would go on with what it was: an ended rental became a releasing one again. What the session itself has changed
    is written first.
    """
    if statement.is_select and getattr(statement.statement, "_for_update_arg", None) is not None:
        statement.update_execution_options(populate_existing=True)


class Database:
    """An engine and its sessions. `clock_offset_us` shifts `jobs.clock.db_now` in tests; it is 0 in life.

    Each of `after_commit` is called with the session of a transaction that was committed: what room functions noted in
    `session.info` can be acted on now, and not before.
    """

    def __init__(self, url: str, *, clock_offset_us: int = 0, settings: DatabaseSettings = DEFAULTS) -> None:
        self.url = _with_driver(url)
        self.clock_offset_us = clock_offset_us
        self.engine = _engine(self.url, settings)
        self._guard: Guard | None = None
        self._remembered: dict[str, Any] = {}
        self.after_commit: list[Callable[[AsyncSession], None]] = []
        self._sessions = async_sessionmaker(self.engine, sync_session_class=_Session, expire_on_commit=False)

    @asynccontextmanager
    async def transaction(self, *, of_one_moment: bool = False) -> AsyncIterator[AsyncSession]:
        """One transaction: committed when the block ends, rolled back when it raises. `of_one_moment`: see `as_of_now`, which
        in a guarded transaction would come too late, for the guard has read."""
        async with self._sessions() as session:
            acts: dict[str, Guard] = {}
            mine = {"clock_offset_us": self.clock_offset_us, _AT_THE_END: acts, _REMEMBERED: self._remembered}
            session.info.update(mine)
            async with session.begin():
                if of_one_moment:
                    await as_of_now(session)
                if self._guard is not None:
                    await self._guard(session)
                yield session
                for at_end in acts.values():
                    await at_end(session)
            for act in self.after_commit:
                act(session)

    def guarded(self, guard: Guard) -> Database:
        """The same database, each of whose transactions begins with `guard`; what it raises, the transaction raises."""
        guarded = copy.copy(self)
        guarded._guard = guard
        return guarded

    def process_now_us(self) -> int:
        """Microseconds UTC by this process's clock, shifted as the database's is in tests. For nothing that a lease hangs on."""
        return time.time_ns() // 1_000 + self.clock_offset_us

    async def require(self) -> None:
        """Raises Unreachable when nobody answers there, or whoever does refuses us."""
        try:
            async with self.engine.connect():
                pass
        except UNAVAILABLE as away:
            where = make_url(self.url).render_as_string(hide_password=True)
            said = " ".join(str(away.orig if isinstance(away, DBAPIError) else away).split())
            raise Unreachable(
                f"the database {where} cannot be used: {said}; see database_url and whether it is up"
            ) from away

    @property
    def is_shared(self) -> bool:
        """Whether several brokers may work on it."""
        return self.engine.dialect.name == "postgresql"

    async def close(self) -> None:
        await self.engine.dispose()


def _with_driver(url: str) -> str:
    """Our two drivers: aiosqlite and psycopg 3. A URL without a driver gets the one for its dialect."""
    parsed = make_url(url)
    driver = {"sqlite": "sqlite+aiosqlite", "postgresql": "postgresql+psycopg", "postgres": "postgresql+psycopg"}
    name = driver.get(parsed.drivername, parsed.drivername)
    return parsed.set(drivername=name).render_as_string(hide_password=False)


def _engine(url: str, settings: DatabaseSettings) -> AsyncEngine:
    if make_url(url).get_backend_name() != "sqlite":
        # A broker that is paused or cut off in a transaction would keep its locks from the others: when it says nothing,
        # and, told to the server's TCP, when it no longer reads what it asked for. (Between two messages of a pipeline
        # neither holds: broker.replica_link ends it.)
        silence_ms = round(settings.leader_patience_s * 1000)
        if find_spec("psycopg") is None:
            raise Unreachable(
                "database_url names PostgreSQL, whose driver is missing: pip install 'compute-broker[postgres]'"
            )
        engine = create_async_engine(
            url,
            # an error's message would show what was written, and that may be a secret or a person's text
            hide_parameters=True,
            pool_size=settings.pool_size,
            max_overflow=settings.pool_overflow,
            connect_args={
                **LIVELINESS,
                "options": f"-c idle_in_transaction_session_timeout={silence_ms} -c tcp_user_timeout={silence_ms}",
                "application_name": "broker",
            },
        )
        _ping_after_a_pause(engine)
        return engine
    # timeout: how long a writer waits for another before "database is locked"; commits here take milliseconds.
    engine = create_async_engine(url, connect_args={"timeout": 30}, hide_parameters=True)

    @event.listens_for(engine.sync_engine, "connect")
    def _connect(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # the driver must not begin transactions of its own
        cursor = connection.cursor()
        # secure_delete: a key that is destroyed must not lie on in a free page
        pragmas = (
            "journal_mode=wal",
            "synchronous=normal",
            "foreign_keys=on",
            "recursive_triggers=on",
            "secure_delete=on",
        )
        for pragma in pragmas:
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @event.listens_for(engine.sync_engine, "begin")
    def _begin(connection: Any) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    return engine


def _ping_after_a_pause(engine: AsyncEngine) -> None:
    """Ask a connection that has lain in the pool for a while whether it still is one, and get another if not.

    SQLAlchemy's own `pool_pre_ping` asks each time: one of eight round trips of a small transaction.
    """

    @event.listens_for(engine.sync_engine, "checkin")
    def _checkin(_connection: Any, record: Any) -> None:
        record.info["in_since"] = time.monotonic()

    @event.listens_for(engine.sync_engine, "checkout")
    def _checkout(connection: Any, record: Any, _proxy: Any) -> None:
        since = record.info.get("in_since")
        if since is None or time.monotonic() - since < TRUSTED_S:
            return
        try:
            is_alive = engine.dialect.do_ping(connection)
        except engine.dialect.loaded_dbapi.Error as failure:
            raise DisconnectionError("a connection from the pool is gone") from failure
        if not is_alive:
            raise DisconnectionError("a connection from the pool is gone")
