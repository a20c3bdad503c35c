"""Who does a piece of work, where several brokers share one PostgreSQL database and all of them validate, finish and clean up.

A claim is a row with a lease. Whoever has it does the work; every transaction of that work begins by finding the claim still
his, and keeps the row locked to its end, so that a takeover comes after the last thing that was written and never beside it. A
broker that is killed, paused or cut off is succeeded when its lease has run out: what it had written stands, what it begins
later is refused. One that lives renews its claim three times a lease, however long the work takes.

With SQLite there is one broker, and nothing to claim (contract C16).
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

import structlog
from sqlalchemy import delete, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from broker.database import UNAVAILABLE, Database, Guard
from broker.tables import ClaimRow
from jobs.clock import MICROSECONDS, db_now

log = structlog.get_logger()


class ClaimLost(Exception):
    """Another broker has taken over this work since; what this one was about to write is not written."""

    code = "claim_lost"


@dataclass(frozen=True)
class Claims:
    """Claims of one broker. `holder` is for people; `lease_s` is how long it may be silent before another takes over."""

    holder: str
    lease_s: float

    @asynccontextmanager
    async def of(self, database: Database, work: str, subject: str) -> AsyncIterator[Database | None]:
        """The database, for this work alone, while the block runs; None: it is another's at the moment.

        When the claim is lost the block ends where it next writes, and that is logged; the work is the other's.
        """
        token = secrets.token_hex(16)
        async with database.transaction() as session:
            is_mine = await take(session, work, subject, token, holder=self.holder, lease_s=self.lease_s)
        if not is_mine:
            yield None
            return
        renewing = asyncio.create_task(self._renew(database, work, subject, token))
        try:
            yield database.guarded(_fence(work, subject, token))
        except ClaimLost as lost:
            log.warning("claim.lost", work=work, subject=subject, error=str(lost))
        finally:
            renewing.cancel()
            with suppress(asyncio.CancelledError):
                await renewing
            await self._release(database, token)

    async def _release(self, database: Database, token: str) -> None:
        try:
            async with database.transaction() as session:
                await session.execute(delete(ClaimRow).where(col(ClaimRow.token) == token))
        except UNAVAILABLE as failure:
            log.info("claim.unreleased", error=type(failure).__name__)  # it runs out by itself

    async def _renew(self, database: Database, work: str, subject: str, token: str) -> None:
        while True:
            await asyncio.sleep(self.lease_s / 3)
            try:
                async with database.transaction() as session:
                    if not await renew(session, token, lease_s=self.lease_s):
                        return  # the next transaction of the work finds out
            except UNAVAILABLE as failure:
                log.info("claim.unrenewed", work=work, subject=subject, error=type(failure).__name__)


async def take(session: AsyncSession, work: str, subject: str, token: str, *, holder: str, lease_s: float) -> bool:
    """Whether the work is the token's now: nobody had it, or the lease of who had it has run out. Waits for a predecessor's
    last transaction, where one is under way."""
    now_us = await db_now(session)
    query = select(col(ClaimRow.until_us)).where(col(ClaimRow.work) == work, col(ClaimRow.subject) == subject)
    until_us = await session.scalar(query)
    if until_us is not None and until_us > now_us:
        return False
    insert = (sqlite if session.get_bind().dialect.name == "sqlite" else postgresql).insert
    mine = {"token": token, "holder": holder, "until_us": now_us + round(lease_s * MICROSECONDS)}
    statement = (
        insert(ClaimRow)
        .values(work=work, subject=subject, takes=1, **mine)
        .on_conflict_do_update(
            index_elements=["work", "subject"],
            set_={**mine, "takes": col(ClaimRow.takes) + 1},
            # of two who saw it run out, the second finds the first's lease
            where=col(ClaimRow.until_us) <= now_us,
        )
        .returning(col(ClaimRow.takes))
    )
    takes = await session.scalar(statement)
    if takes is not None and takes > 1:
        log.warning("claim.taken_over", work=work, subject=subject, by=holder)
    return takes is not None


async def renew(session: AsyncSession, token: str, *, lease_s: float) -> bool:
    """Whether it still was the token's."""
    until_us = await db_now(session) + round(lease_s * MICROSECONDS)
    statement = update(ClaimRow).where(col(ClaimRow.token) == token).values(until_us=until_us)
    done = await session.execute(statement.returning(col(ClaimRow.subject)))
    return done.first() is not None


async def forget_old(session: AsyncSession, before_us: int) -> None:
    """Claims of brokers that died after their last write, on work that nobody has to do again."""
    await session.execute(delete(ClaimRow).where(col(ClaimRow.until_us) < before_us))


def _fence(work: str, subject: str, token: str) -> Guard:
    async def guard(session: AsyncSession) -> None:
        query = select(col(ClaimRow.token)).where(col(ClaimRow.work) == work, col(ClaimRow.subject) == subject)
        found = await session.scalar(query.with_for_update(read=True))
        if found != token:
            raise ClaimLost(f"{work} of {subject} is another broker's now: nothing was written")

    return guard
