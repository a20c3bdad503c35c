"""Transactions that used to come to wait for each other in a ring, many of them at once. On PostgreSQL one of two such ends as a
deadlock; on SQLite, where everybody queues at BEGIN, only the order is watched (tests/support/lock_watch.py)."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from aiohttp.test_utils import make_mocked_request

from broker.api.registry import Call
from broker.api.worker import _work
from broker.budget_changes import Wanted, put
from broker.control.accrue import Accruer
from broker.control.budget import BudgetKeeper
from broker.control.plan import Planner
from broker.control.settle import settle
from broker.lock_order import ORDER
from jobs.clock import db_now
from ledger import audit
from ledger.book import lock
from markets import rentals
from tests.support.lock_watch import watch_locks

DOLLAR = 10**9


def agent(town: Any, rental: str) -> Call:
    """A call of the rental's worker."""
    return Call(town.services, make_mocked_request("POST", "/"), "request", None, "", rental)


ROUNDS = 6


async def budget(town: Any, scope: str, dollars: float) -> None:
    async with town.database.transaction() as session:
        wanted = Wanted(round(dollars * DOLLAR), None, "enforce", "total", ())
        await put(
            session, scope=scope, unit="USD", project="default", wanted=wanted, by="fin", now_us=await db_now(session)
        )


async def test_breakers_drain_while_workers_lease_and_machines_are_settled(town: Any) -> None:
    """`BudgetKeeper` sealed and then drained; a lease locks its worker, then seals; settling the worker, then the books."""
    of = town.offer()
    await town.list_offers(of)
    batch = await town.batch(lines=5)
    machines = [await town.rental(of, purpose=(batch,), ran_s=60) for _ in range(ROUNDS)]
    await town.assign(batch, of)
    await budget(town, "project:default", 0.01)

    async def lease(rental: str) -> None:
        await _work(agent(town, rental))

    async def release(rental: str) -> None:
        async with town.database.transaction() as session:
            now_us = await db_now(session)
            await rentals.lost(session, rental, error="gone", now_us=now_us)
            await settle(session, rental, now_us=now_us)

    async def work() -> None:
        for rental in machines:
            await asyncio.gather(
                BudgetKeeper(town.services).step(), lease(rental), Accruer(town.services).step(), release(rental)
            )

    await asyncio.wait_for(work(), 60)
    async with town.database.transaction() as session:
        assert await audit.check(session) == []


@pytest.mark.own_writes
async def test_a_lock_that_comes_too_late_is_told(town: Any) -> None:
    """The watch itself: what it is there for fails under it."""
    rental = await town.rental(town.offer(), purpose=())
    with pytest.raises(AssertionError, match="markets_rental after ledger_head"), watch_locks(town.database.engine):
        async with town.database.transaction() as session:
            await settle_money_first(session, rental)


async def settle_money_first(session: Any, rental: str) -> None:
    await lock(session)
    await rentals.locked(session, rental)


def test_the_heads_of_the_books_come_last() -> None:
    assert ORDER[-3:] == ("ledger_head", "ledger_seal_head:books", "ledger_seal_head:decisions")


async def test_the_profile_of_a_batch_that_waits_cannot_change_while_it_is_assigned(town: Any) -> None:
    """On PostgreSQL the change lay between the plan's look at it and its assignment: planned for one model, served by another."""
    made = await town.batch(lines=5)
    planner = Planner(town.services)
    await planner.step()
    assert await town.waiting(made) is not None
    await town.list_offers(town.offer())
    with watch_locks(town.database.engine) as watch:
        await planner.step()
    assert "jobs_batch" in watch.seen
    assert await town.assigned(made)
