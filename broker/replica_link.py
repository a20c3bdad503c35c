"""A broker's one connection beside its pool: the leader's lock is held on it, and nudges of other brokers arrive by it.

PostgreSQL 14 or newer (`idle_session_timeout`), reached directly: a pooler that shares connections between clients, such
as pgbouncer in transaction mode, would give the lock away.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import psycopg
import structlog
from psycopg import sql
from psycopg.conninfo import make_conninfo
from psycopg.types.json import Json
from sqlalchemy import text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import SQLAlchemyError

from broker.database import LIVELINESS, Database
from broker.leadership import THE_TERM, Cut, Elected, Leadership, Passed

log = structlog.get_logger()

LEADER_LOCK = 0x62726B01  # advisory locks are numbers that a whole database shares: "brk", 1
CHANNEL = "broker_nudge"
# A leader says something so many times before its silence counts as the end of it.
BEATS = 4
RAISE_TERM = """
    UPDATE broker_term SET term = term + 1, holder = %(holder)s, url = %(url)s,
        since_us = CAST(extract(epoch FROM clock_timestamp()) * 1000000 AS bigint)
    WHERE id = %(id)s RETURNING term
"""

# A broker's entry, which it renews with every beat; those that have been silent for a day are forgotten.
SHOW = """
    INSERT INTO broker_replica (holder, url, settings, started_us, seen_us)
    SELECT %(holder)s, %(url)s, %(settings)s, now_us, now_us
    FROM (SELECT CAST(extract(epoch FROM clock_timestamp()) * 1000000 AS bigint) AS now_us) AS clock
    ON CONFLICT (holder) DO UPDATE SET seen_us = excluded.seen_us, settings = excluded.settings, url = excluded.url
"""
FORGET = """
    DELETE FROM broker_replica
    WHERE seen_us < CAST(extract(epoch FROM clock_timestamp() - interval '1 day') * 1000000 AS bigint)
"""

# A session that has begun something and whose broker has sent nothing more of it for too long: paused, or cut off. Between
# two messages of a pipeline (psycopg's executemany) `idle_in_transaction_session_timeout` is not running, and a broker
# that was stopped just there kept its locks, its term among them, for as long as it stood still (2026-11).
END_SILENT = """
    SELECT pg_terminate_backend(pid) FROM pg_stat_activity
    WHERE datname = current_database() AND usename = current_user AND application_name = 'broker'
        AND state IN ('active', 'idle in transaction', 'idle in transaction (aborted)') AND wait_event = 'ClientRead'
        AND greatest(state_change, query_start) < clock_timestamp() - make_interval(secs => %(silence_s)s)
"""


@dataclass
class ReplicaLink:
    """Run `attend` for as long as the broker lives. `nudged` is called with the name of each loop that another nudges.

    `holder` and `url` say to people who leads, `settings` are digests by section. A leader that is silent for `patience_s`
    is one no more.
    """

    database: Database
    leadership: Leadership
    nudged: Callable[[str], None]
    holder: str
    url: str
    patience_s: float
    settings: Mapping[str, str] = field(default_factory=dict)
    _told: asyncio.Event = field(default_factory=asyncio.Event)
    _to_tell: set[str] = field(default_factory=set)

    async def attend(self) -> None:
        """Connect, stand for election, listen; begin anew whenever the connection breaks."""
        while True:
            try:
                async with await self._connect() as connection:
                    await self._stand_and_listen(connection)
            except (psycopg.Error, OSError, TimeoutError) as failure:
                self.leadership.hear(Cut(f"{type(failure).__name__}: {failure}".strip()))
            await asyncio.sleep(self.patience_s / BEATS)

    async def tell(self) -> None:
        """Send on what `nudge` was given: what comes while one is under way goes with the next."""
        while True:
            await self._told.wait()
            self._told.clear()
            loops, self._to_tell = self._to_tell, set()
            try:
                async with self.database.transaction() as session:
                    for loop in sorted(loops):
                        await session.execute(
                            text("SELECT pg_notify(:channel, :loop)"), {"channel": CHANNEL, "loop": loop}
                        )
            except (SQLAlchemyError, OSError) as failure:
                # the leader's loop runs at its next tick
                log.info("nudge.lost", loops=sorted(loops), error=type(failure).__name__)

    def nudge(self, loop: str) -> None:
        self._to_tell.add(loop)
        self._told.set()

    async def _connect(self) -> psycopg.AsyncConnection:
        silence_ms = math.ceil(self.patience_s * 1000)
        plain = make_url(self.database.url).set(drivername="postgresql").render_as_string(hide_password=False)
        told = make_conninfo(
            plain,
            **LIVELINESS,
            options=f"-c idle_session_timeout={silence_ms} -c lock_timeout={silence_ms}",
            application_name="broker leader",
        )
        return await psycopg.AsyncConnection.connect(told, autocommit=True)

    async def _stand_and_listen(self, connection: psycopg.AsyncConnection) -> None:
        await connection.execute(sql.SQL("LISTEN {}").format(sql.Identifier(CHANNEL)))
        await connection.execute(FORGET)
        shown = {"holder": self.holder, "url": self.url, "settings": Json(dict(self.settings))}
        while True:
            async with asyncio.timeout(self.patience_s):
                await connection.execute(SHOW, shown)
                await self._end_silent(connection)
            await self._stand(connection)
            async for told in connection.notifies(timeout=self.patience_s / BEATS):
                self.nudged(told.payload)

    async def _stand(self, connection: psycopg.AsyncConnection) -> None:
        """Stand for election while another leads. Raises TimeoutError when nothing is heard."""
        if self.leadership.leads:
            return
        async with asyncio.timeout(self.patience_s):
            found = await connection.execute("SELECT pg_try_advisory_lock(%s)", (LEADER_LOCK,))
            (is_ours,) = await found.fetchone() or (False,)
        if not is_ours:
            self.leadership.hear(Passed())
            return
        self.leadership.hear(Elected(await self._raised(connection)))

    async def _raised(self, connection: psycopg.AsyncConnection) -> int:
        """The new term. Waits for what the term before has begun, which ends when nothing is said in it for `patience_s`."""
        while True:
            try:
                raised = await connection.execute(RAISE_TERM, {"holder": self.holder, "url": self.url, "id": THE_TERM})
                break
            except psycopg.errors.LockNotAvailable:
                log.info("leader.waiting_for_the_term_before", patience_s=self.patience_s)
                await self._end_silent(connection)
        (term,) = await raised.fetchone() or (None,)
        if term is None:
            raise psycopg.DataError(f"broker_term has no row {THE_TERM}; run the migrations")
        return int(term)

    async def _end_silent(self, connection: psycopg.AsyncConnection) -> None:
        ended = await connection.execute(END_SILENT, {"silence_s": self.patience_s})
        if ended.rowcount:
            log.warning("session.ended_for_silence", sessions=ended.rowcount, patience_s=self.patience_s)
