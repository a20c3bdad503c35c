"""Limits of batches, tags and tokens reach what was there before them, and other batches' machines."""

from __future__ import annotations

from typing import Any

import pytest
from aiohttp.test_utils import make_mocked_request
from sqlalchemy import event, select
from sqlmodel import col

from broker import token_holds
from broker.api.registry import Call
from broker.api.worker import _work
from broker.budget_changes import Wanted, put
from broker.budget_tables import BudgetRow
from broker.budgets import Placement, admit, use_of
from broker.control.accrue import Accruer
from broker.control.budget import BudgetKeeper
from broker.control.plan import Planner
from broker.control.snapshot import freeze
from broker.tables import Assignment, Worker
from jobs.clock import db_now
from jobs.tables import Batch
from ledger import accounts, audit, limits
from ledger.book import post
from ledger.errors import LimitExceeded
from ledger.event import Dims, Event, Line
from ledger.tables import HoldState
from ledger.units import MTOKEN, NANO_PER_TOKEN

DOLLAR = 10**9


def agent(town: Any, rental: str) -> Call:
    """A call of the rental's worker."""
    return Call(town.services, make_mocked_request("POST", "/"), "request", None, "", rental)


async def budget(town: Any, scope: str, nano: int, unit: str = "USD", per_hour_nano: int | None = None) -> str:
    async with town.database.transaction() as session:
        wanted = Wanted(nano, per_hour_nano, "enforce", "total", ())
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
    budget_id = await budget(town, "tag:default/team=x", DOLLAR // 10)
    async with town.database.transaction() as session:
        (await session.get_one(BudgetRow, budget_id)).state = "open"
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
    assert waiting.waiting_on == "budget"
    assert waiting.reasons[0] == f"budget: batch:{guest} is what limits it (`broker budget limits`)"
    assert await town.assigned(guest) == []


async def test_what_is_only_planned_opens_no_breaker_and_is_planned_once(town: Any) -> None:
    """Two batches of a tag with $10, each planned at $8 on another's machine: $16 committed, nothing spent, and its breaker was
    open for good. Each of them was given the whole of what was left, too."""
    _, older, _ = await borrowed(town)
    newer = await town.batch(lines=5, tags={"team": "x"})
    async with town.database.transaction() as session:
        key = str(town.offer().key)
        (await session.get_one(Assignment, (older, key))).cost_nano = 8 * DOLLAR
        session.add(Assignment(batch=newer, offer_key=key, plan="p", rank=2, cost_nano=8 * DOLLAR, end_us=0))
    budget_id = await budget(town, "tag:default/team=x", 10 * DOLLAR)
    await BudgetKeeper(town.services).step()
    assert (await town.row(BudgetRow, budget_id)).state == "throttled", (
        "nothing more is rented for it; what runs goes on"
    )
    assert await given(town, older, newer) == [10 * DOLLAR, 2 * DOLLAR]
    async with town.database.transaction() as session:
        await session.delete(await session.get_one(Assignment, (newer, key)))
    await BudgetKeeper(town.services).step()
    assert (await town.row(BudgetRow, budget_id)).state == "closed"


async def test_what_a_tags_machine_has_set_aside_is_given_to_no_other_batch_of_the_tag(town: Any) -> None:
    of = town.offer()
    await town.list_offers(of)
    other, mine = await town.batch(lines=5, tags={"team": "x"}), await town.batch(lines=5, tags={"team": "x"})
    await town.rental(of, purpose=(mine,))  # its hold: $1000
    await budget(town, "tag:default/team=x", 1002 * DOLLAR)
    assert await given(town, other, mine) == [2 * DOLLAR, 1002 * DOLLAR]


async def given(town: Any, *batches: str) -> list[int | None]:
    async with town.database.transaction() as session:
        frozen = await freeze(session, town.services, now_us=await db_now(session))
    return [work.max_nano for batch in batches for work in frozen.snapshot.works if work.id == batch]


async def test_a_batch_that_ended_has_nothing_held_on_a_machine_that_is_kept_for_others(town: Any) -> None:
    """The whole hold went on counting for its tag: what others spent there opened the breaker of a tag that is done."""
    of = town.offer()
    await town.list_offers(of)
    ended, other = await town.batch(lines=5, tags={"team": "x"}), await town.batch(lines=5)
    await town.rental(of, purpose=(ended, other))
    budget_id = await budget(town, "tag:default/team=x", 2000 * DOLLAR)
    for status, held in (("in_progress", 1000 * DOLLAR), ("completed", 0)):
        async with town.database.transaction() as session:
            (await session.get_one(Batch, ended)).status = status
            use = await use_of(session, await session.get_one(BudgetRow, budget_id), await db_now(session))
            assert use.held_nano == held


async def test_the_limit_of_an_hour_of_a_tag_counts_machines_that_it_shares(town: Any) -> None:
    """Shared with one batch that has no tag, a machine counted for no limit of the hour at all."""
    _, guest, _ = await borrowed(town)  # on a machine of 3.60 $/h
    await budget(town, "tag:default/team=x", 5000 * DOLLAR, per_hour_nano=7 * DOLLAR)
    async with town.database.transaction() as session:
        for nano_hour, is_refused in ((34 * DOLLAR // 10, False), (35 * DOLLAR // 10, True)):
            asked = Placement("default", (guest,), DOLLAR, price_nano_hour=nano_hour)
            try:
                await admit(session, asked, now_us=await db_now(session))
            except LimitExceeded as refused:
                assert is_refused, refused
            else:
                assert not is_refused


@pytest.mark.parametrize("scope", ["tag:default/team=x", "project:default"])
async def test_a_batch_that_a_budget_stops_says_which_also_in_a_project_without_a_team(town: Any, scope: str) -> None:
    """It said `price_ceiling`, as if its own max_usd were too low, and the owner raised that in vain."""
    await town.list_offers(town.offer())
    await budget(town, scope, DOLLAR // 10_000)
    batch = await town.batch(lines=5, tags={"team": "x"}, max_usd="5")
    await Planner(town.services).step()
    waiting = await town.waiting(batch)
    assert waiting is not None
    assert (waiting.waiting_on, waiting.reasons[0]) == (
        "budget",
        f"budget: {scope} is what limits it (`broker budget limits`)",
    )


async def test_a_batch_that_its_own_max_usd_stops_blames_no_budget(town: Any) -> None:
    await town.list_offers(town.offer())
    await budget(town, "project:default", DOLLAR)
    batch = await town.batch(lines=5, max_usd="0.0001")
    await Planner(town.services).step()
    waiting = await town.waiting(batch)
    assert waiting is not None
    assert waiting.waiting_on == "price_ceiling"
    assert "budget:" not in waiting.reasons[0]


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


async def test_what_a_tags_batches_ever_cost_is_not_added_up_behind_the_head_of_the_books(town: Any) -> None:
    """Accrual locks the head; then each batch's costs were added up, for each of its budgets, while the whole house waited."""
    _, guest, rental = await borrowed(town)
    await budget(town, "tag:default/team=x", 100 * DOLLAR)
    await spend_hold_down(town, rental)
    said: list[str] = []

    def hear(_conn: Any, _cursor: Any, statement: str, *_: Any) -> None:
        said.append(statement)

    engine = town.database.engine.sync_engine
    event.listen(engine, "before_cursor_execute", hear)
    event.listen(engine, "commit", lambda _: said.append("COMMIT"))
    await Accruer(town.services).step()
    event.remove(engine, "before_cursor_execute", hear)
    first = next(place for place, each in enumerate(said) if each.startswith("INSERT INTO ledger_entry"))
    behind = said[first : said.index("COMMIT", first)]
    assert any("hold" in each for each in behind)
    assert not [each for each in behind if "FROM jobs_part" in each]
    assert await town.assigned(guest) != []


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


async def test_batches_that_a_grant_refuses_keep_no_older_ones_from_being_counted(
    town: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The newest so many were looked at each round: where the grant refused them, all older ones stayed uncounted."""
    monkeypatch.setattr(token_holds, "ENDED_AT_ONCE", 1)
    small, large = await town.batch(lines=5), await town.batch(lines=5)
    async with town.database.transaction() as session:
        now_us = await db_now(session)
        for name, tokens in ((small, 11), (large, 5_000)):
            row = await session.get_one(Batch, name)
            row.status, row.completed_us, row.used_input_tokens = "completed", now_us, tokens
        lines = (Line(account=accounts.budget("default"), nano=100 * NANO_PER_TOKEN, unit=MTOKEN),
                 Line(account=accounts.CONTRA, nano=-100 * NANO_PER_TOKEN, unit=MTOKEN))  # fmt: skip
        given = Event(
            key="g", kind="budget.grant", occurred_at_us=now_us, actor="fin", dims=Dims(project="default"), lines=lines
        )
        await post(session, given, recorded_at_us=now_us)
    await budget(town, "project:default", 1000 * NANO_PER_TOKEN, MTOKEN)
    keeper = BudgetKeeper(town.services)
    for _ in range(3):
        await keeper.step()
    async with town.database.transaction() as session:
        assert (await limits.uses(session, "project:default", MTOKEN))["all"] == 11 * NANO_PER_TOKEN
