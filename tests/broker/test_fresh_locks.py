"""A read that locks says what the row is, whatever the session had read of it before.

Another transaction that changed the row meanwhile is played by a statement that the session's objects do not hear of: on
SQLite no other can write while this one goes on.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from broker.database import Database
from broker.tables import Worker
from broker.worker_sessions import locked_worker

Lock = Callable[[AsyncSession, str], Awaitable[Worker | None]]


async def through_get(session: AsyncSession, rental: str) -> Worker | None:
    return await session.get(Worker, rental, with_for_update=True)


async def through_select(session: AsyncSession, rental: str) -> Worker | None:
    found: Worker | None = await session.scalar(select(Worker).where(col(Worker.rental) == rental).with_for_update())
    return found


@pytest.mark.parametrize("lock", [through_get, through_select, locked_worker])
async def test_a_worker_that_was_gone_when_it_was_locked_is_not_taken_for_what_was_read_before(
    database: Database, lock: Lock
) -> None:
    async with database.transaction() as session:
        session.add(Worker(rental="r", bootstrap_sha256="0", bootstrap_expires_us=1, created_us=1, state="ready"))
    async with database.transaction() as session:
        before = await session.get_one(Worker, "r")
        assert before.state == "ready"
        elsewhere = update(Worker).where(col(Worker.rental) == "r").values(state="gone", session=7)
        await session.execute(elsewhere.execution_options(synchronize_session=False))
        assert (await session.get_one(Worker, "r")).state == "ready", "the session knows nothing of it yet"
        locked = await lock(session, "r")
        assert locked is not None
        assert (locked.state, locked.session) == ("gone", 7)


@pytest.mark.parametrize("lock", [through_get, through_select, locked_worker])
async def test_what_the_session_itself_changed_is_not_lost_to_its_lock(database: Database, lock: Lock) -> None:
    async with database.transaction() as session:
        session.add(Worker(rental="r", bootstrap_sha256="0", bootstrap_expires_us=1, created_us=1, state="ready"))
    async with database.transaction() as session:
        (await session.get_one(Worker, "r")).state = "draining"
        locked = await lock(session, "r")
        assert locked is not None and locked.state == "draining"
    async with database.transaction() as session:
        assert (await session.get_one(Worker, "r")).state == "draining"
