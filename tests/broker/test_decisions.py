"""Decisions are sealed at the end of the transaction that makes them, so that nobody waits for one who still judges."""

from __future__ import annotations

import asyncio
from typing import Any

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from broker.compliance.decisions import record
from broker.compliance.tables import DecisionRow, FactsRow
from broker.database import Database
from ledger import seal
from solver.residency import INTERNAL, Facts, evaluate

SECRET = b"a secret of thirty-two bytes...."


def place(country: str) -> Facts:
    return Facts(
        country=country, subdivision=None, location_tier="claimed", confidentiality="none", launch="vm", market="m"
    )


async def decide(session: AsyncSession, batch: str, country: str, **more: Any) -> None:
    facts = place(country)
    await record(
        session,
        SECRET,
        point="lease",
        batch=batch,
        rental="rental_1",
        offer_key="offer",
        policy_hash="hash",
        policy=INTERNAL,
        facts=facts,
        decision=evaluate(INTERNAL, facts, 1),
        at_us=1,
        **more,
    )


async def test_what_a_transaction_decides_is_sealed_at_its_end_in_its_order(database: Database) -> None:
    told: list[int] = []
    async with database.transaction() as session:
        for country in ("DE", "FR", "DE"):
            await decide(session, f"batch_{country}", country, told=told.append)
        assert (await seal.head(session, "decisions")).seq == 0, "the head is locked while others may still be judged"
    async with database.transaction() as session:
        rows = (await session.scalars(select(DecisionRow).order_by(col(DecisionRow.seq)))).all()
        assert [each.batch for each in rows] == ["batch_DE", "batch_FR", "batch_DE"]
        assert told == [each.seq for each in rows] == [1, 2, 3]
        assert len((await session.scalars(select(FactsRow))).all()) == 2
        assert (await seal.head(session, "decisions")).seq == 3


async def test_a_transaction_that_fails_seals_nothing(database: Database) -> None:
    try:
        async with database.transaction() as session:
            await decide(session, "batch_1", "DE")
            raise TimeoutError
    except TimeoutError:
        pass
    async with database.transaction() as session:
        assert (await seal.head(session, "decisions")).seq == 0
        assert (await session.scalars(select(FactsRow))).all() == []


async def test_two_that_decide_on_the_same_new_facts_in_opposite_order_wait_in_no_ring(database: Database) -> None:
    """A record was sealed where it was made: one had the head and wanted the facts that the other had added, who wanted the
    head. PostgreSQL ended one of the two."""
    both = asyncio.Barrier(2)

    async def judge(batch: str, countries: list[str]) -> None:
        async with database.transaction() as session:
            for country in countries:
                await decide(session, batch, country)
                if database.is_shared:  # SQLite has one writer: there the second begins when the first is through
                    await both.wait()

    await asyncio.gather(judge("batch_1", ["DE", "FR"]), judge("batch_2", ["FR", "DE"]))
    async with database.transaction() as session:
        assert (await seal.head(session, "decisions")).seq == 4
        assert len((await session.scalars(select(FactsRow))).all()) == 2
