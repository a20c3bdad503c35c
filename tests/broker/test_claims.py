"""Claims: who does a piece of work, and who may write it, where several brokers validate, finish and clean up."""

from __future__ import annotations

import asyncio

from sqlalchemy import select

from broker.claims import Claims, forget_old, renew, take
from broker.database import Database
from broker.tables import ClaimRow
from jobs.clock import db_now

LEASE_S = 30.0
ONE, OTHER = Claims("one:1", LEASE_S), Claims("other:2", LEASE_S)


async def claims(database: Database) -> list[ClaimRow]:
    async with database.transaction() as session:
        return list(await session.scalars(select(ClaimRow)))


async def test_one_of_two_gets_the_work_and_the_other_another(database: Database) -> None:
    async with ONE.of(database, "validate", "a") as mine, OTHER.of(database, "validate", "a") as theirs:
        assert mine is not None
        assert theirs is None
        async with OTHER.of(database, "validate", "b") as another, OTHER.of(database, "finalise", "a") as at_the_end:
            assert another is not None
            assert at_the_end is not None
    assert await claims(database) == [], "what is done is nobody's any more"
    async with OTHER.of(database, "validate", "a") as again:
        assert again is not None


async def test_the_work_of_one_that_died_is_taken_over_and_what_it_begins_later_is_not_written(
    database: Database,
) -> None:
    """As after a pause: it goes on where it was, without knowing that its lease has run out."""
    reached = []
    async with ONE.of(database, "validate", "a") as mine:
        assert mine is not None
        async with mine.transaction():
            pass  # in time
        database.clock_offset_us += round(LEASE_S * 1_000_000) + 1
        async with OTHER.of(database, "validate", "a") as theirs:
            assert theirs is not None
            async with theirs.transaction():
                pass
            reached.append("before")
            async with mine.transaction() as session:
                await session.execute(select(ClaimRow))
                reached.append("written after all")
    assert reached == ["before"]


async def test_a_claim_that_is_renewed_is_nobody_elses_however_long_the_work_takes(database: Database) -> None:
    async with database.transaction() as session:
        assert await take(session, "finalise", "a", "token", holder="one", lease_s=LEASE_S)
    for _ in range(3):
        database.clock_offset_us += round(0.9 * LEASE_S * 1_000_000)
        async with database.transaction() as session:
            assert await renew(session, "token", lease_s=LEASE_S)
            assert not await take(session, "finalise", "a", "other", holder="other", lease_s=LEASE_S)
    database.clock_offset_us += round(1.1 * LEASE_S * 1_000_000)
    async with database.transaction() as session:
        assert await take(session, "finalise", "a", "other", holder="other", lease_s=LEASE_S)
        assert not await renew(session, "token", lease_s=LEASE_S), "it is not the first's any more"
    async with database.transaction() as session:
        await forget_old(session, await db_now(session) + 10**9)
    assert await claims(database) == []


async def test_of_many_who_ask_at_once_one_gets_it(database: Database) -> None:
    async def ask(n: int) -> bool:
        async with database.transaction() as session:
            return await take(session, "validate", "a", f"token{n}", holder=str(n), lease_s=LEASE_S)

    assert sum(await asyncio.gather(*(ask(n) for n in range(8)))) == 1
    database.clock_offset_us += round(LEASE_S * 1_000_000) + 1
    assert sum(await asyncio.gather(*(ask(n + 8) for n in range(8)))) == 1
