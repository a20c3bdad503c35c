"""Limits of batches, tags and tokens reach what was there before them, and other batches' machines."""

from __future__ import annotations

from typing import Any

from aiohttp.test_utils import make_mocked_request
from sqlalchemy import select
from sqlmodel import col

from broker.api.registry import Call
from broker.api.worker import _work
from broker.budget_changes import Wanted, put
from broker.budget_tables import BudgetRow
from broker.budgets import use_of
from broker.control.accrue import Accruer
from broker.control.budget import BudgetKeeper
from broker.control.plan import Planner
from broker.control.snapshot import freeze
from broker.tables import Assignment, Worker
from jobs.clock import db_now
from jobs.tables import Batch
from ledger import audit, limits
from ledger.tables import HoldState
from ledger.units import MTOKEN, NANO_PER_TOKEN

DOLLAR = 10**9


def agent(town: Any, rental: str) -> Call:
    """A call of the rental's worker."""
    return Call(town.services, make_mocked_request("POST", "/"), "request", None, "", rental)


async def budget(town: Any, scope: str, nano: int, unit: str = "USD") -> str:
    async with town.database.transaction() as session:
        wanted = Wanted(nano, None, "enforce", "total", ())
        now_us = await db_now(session)
        row, _ = await put(session, scope=scope, unit=unit, project="default", wanted=wanted, by="fin", now_us=now_us)
        return str(row.id)


async def borrowed(town: Any) -> tuple[str, str, str]:
    """A machine that was rented for one batch, on which the plan put another: owner, guest, machine."""
    of = town.offer()
    await town.list_offers(of)
    owner, guest = await town.batch(lines=5), await town.batch(lines=5, tags={"team": "x"})
    rental = await town.rental(of, purpose=(owner,), ran_s=60)
    async with town.database.transaction() as session:
        for rank, batch in enumerate((owner, guest)):
            session.add(
                Assignment(batch=batch, offer_key=str(of.key), plan="p", rank=rank, cost_nano=DOLLAR // 2, end_us=0)
            )
    return owner, guest, rental


async def test_what_a_batch_will_cost_on_anothers_machine_counts_against_its_own_budget(town: Any) -> None:
    """Only holds of machines that were rented for it were counted: on a borrowed one a batch had no limit."""
    _, guest, _ = await borrowed(town)
    for scope in (f"batch:{guest}", "tag:default/team=x"):
        budget_id = await budget(town, scope, 2 * DOLLAR)
        async with town.database.transaction() as session:
            use = await use_of(session, await session.get_one(BudgetRow, budget_id), await db_now(session))
            assert use.held_nano == DOLLAR // 2, "what the plan expects it to cost there, not the owner's hold"


async def test_a_batch_whose_breaker_is_open_gets_no_lease_on_anothers_machine(town: Any) -> None:
    owner, _, rental = await borrowed(town)
    await budget(town, "tag:default/team=x", DOLLAR // 10)
    await BudgetKeeper(town.services).step()
    async with town.database.transaction() as session:
        await session.delete(await session.get_one(Assignment, (owner, str(town.offer().key))))
    assert (await _work(agent(town, rental)))["lease"] is None
    assert (await town.row(Worker, rental)).drain_reason is None, "it is the owner's machine"


async def test_the_planner_gives_a_batch_no_more_than_its_budget_or_its_tags_have_left(town: Any) -> None:
    _, guest, _ = await borrowed(town)
    await budget(town, f"batch:{guest}", 2 * DOLLAR)
    await budget(town, "tag:default/team=x", 3 * DOLLAR)
    async with town.database.transaction() as session:
        frozen = await freeze(session, town.services, now_us=await db_now(session))
    [work] = [each for each in frozen.snapshot.works if each.id == guest]
    assert work.max_nano == 2 * DOLLAR
    await budget(town, f"batch:{guest}", 0)
    await Planner(town.services).step()
    waiting = await town.waiting(guest)
    assert waiting is not None
    assert waiting.waiting_on == "price_ceiling"
    assert await town.assigned(guest) == []


async def test_a_guest_that_cannot_pay_leaves_the_machine_to_its_owner(town: Any) -> None:
    """Extending the hold asked for the batches that the machine was rented for: whoever else worked there paid nothing."""
    owner, guest, rental = await borrowed(town)
    await budget(town, f"batch:{guest}", DOLLAR // 100)
    await spend_hold_down(town, rental)
    await Accruer(town.services).step()
    async with town.database.transaction() as session:
        left = await session.scalars(
            select(col(Assignment.batch)).where(col(Assignment.offer_key) == str(town.offer().key))
        )
        assert list(left) == [owner]
    assert (await town.row(Worker, rental)).drain_reason is None


async def spend_hold_down(town: Any, rental: str) -> None:
    """Its hold is as good as used up."""
    async with town.database.transaction() as session:
        row = await session.get_one(HoldState, rental)
        row.remaining_nano = 0


async def test_a_limit_in_tokens_counts_what_running_and_ended_batches_had_used_before(town: Any) -> None:
    """Only batches that began after the limit was set were counted: the others used what they wanted."""
    running, ended = await town.batch(lines=5), await town.batch(lines=5)
    async with town.database.transaction() as session:
        now_us = await db_now(session)
        row = await session.get_one(Batch, running)
        row.used_input_tokens, row.used_output_tokens = 30, 40
        over = await session.get_one(Batch, ended)
        over.status, over.completed_us, over.used_input_tokens = "completed", now_us, 11
    await budget(town, "project:default", 1000 * NANO_PER_TOKEN, MTOKEN)
    for _ in range(2):
        await BudgetKeeper(town.services).step()
        async with town.database.transaction() as session:
            used = await limits.uses(session, "project:default", MTOKEN)
            assert used["held"] == (30 + 40 + 5 + 50) * NANO_PER_TOKEN, "used, and what is left: 5 in, 50 out"
            assert used["all"] == 11 * NANO_PER_TOKEN
    async with town.database.transaction() as session:
        row = await session.get_one(Batch, running)
        row.status, row.completed_us, row.used_output_tokens = "completed", now_us, 60
    await BudgetKeeper(town.services).step()
    async with town.database.transaction() as session:
        used = await limits.uses(session, "project:default", MTOKEN)
        assert (used["held"], used["all"]) == (0, (11 + 90) * NANO_PER_TOKEN)
        assert await audit.check(session) == []
