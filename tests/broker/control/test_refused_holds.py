"""What a budget refuses to hold is not tried at the same place for ever: the next best is, and people are told until when."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from broker.control.accrue import Accruer
from broker.control.draining import drain_all
from broker.control.failed_starts import held_back
from broker.control.plan import Planner
from broker.control.snapshot import freeze
from broker.refusals import Left, Refusals
from broker.tables import Worker
from jobs.clock import db_now
from markets.tables import RentalRow
from solver.types import Snapshot
from tests.broker.control.test_budget_reach import DOLLAR, budget
from tests.broker.control.test_token_budgets import WORST, batch, buys, endpoint, leased, runs

SECOND_US = 1_000_000


async def placed(town: Any, plans: int = 2) -> list[str]:
    """The offers of the intents after so many plans."""
    planner = Planner(town.services)
    for _ in range(plans):
        await planner.step()
    return [row.offer_key for row in await town.intents()]


@pytest.mark.own_writes
async def test_plan_and_hold_agree_about_the_worst_case_so_the_machine_beside_it_is_taken(town: Any) -> None:
    """A budget between what the plan thought ($1.01) and what was held ($1.0125): refused at every plan, for ever."""
    await buys(town)
    machine = town.offer(price="0.40")
    await town.list_offers(machine)
    await batch(town)
    await budget(town, "project:default", 1_011_000_000)
    assert await placed(town, 1) == [str(machine.key)]


@pytest.mark.own_writes
async def test_where_only_the_hold_is_refused_the_next_plan_takes_the_next_best(town: Any) -> None:
    """What a plan does not see (here: dollars an hour) was refused at every plan, with another offer beside it."""
    await buys(town)
    machine = town.offer(price="0.40")
    await town.list_offers(machine)
    made = await batch(town)
    await budget(town, "project:default", 5 * DOLLAR, per_hour_nano=DOLLAR)
    planner = Planner(town.services)
    await planner.step()
    waits = await town.waiting(made)
    assert (waits.waiting_on, await town.intents()) == ("budget", [])
    await planner.step()
    assert [row.offer_key for row in await town.intents()] == [str(machine.key)]
    assert await town.waiting(made) is None
    [why] = [rule.example for rule in planner.plan.funnels[made] if rule.rule == "budget"]
    assert "an hour" in why and "not tried there before" in why


@pytest.mark.own_writes
async def test_a_batch_whose_tag_does_not_cover_a_hold_is_told_until_when_it_waits(town: Any) -> None:
    machine = town.offer(price="0.50")
    await town.list_offers(machine)
    made = await batch(town, tags={"team": "x"})
    await budget(town, "tag:default/team=x", 900_000_000)  # planned are $0.84, held would be $1.05
    assert await placed(town) == []
    waits = await town.waiting(made)
    assert waits.waiting_on == "budget" and "not tried there before" in " ".join(waits.reasons)


@pytest.mark.own_writes
async def test_one_batchs_tag_holds_the_others_back_from_no_machine(town: Any) -> None:
    machine = town.offer(price="0.50")
    await town.list_offers(machine)
    tagged, free = await batch(town, tags={"team": "x"}), await batch(town)
    await budget(town, "tag:default/team=x", 900_000_000)
    await placed(town)
    assert [row.purpose["batches"] for row in await town.intents()] == [[free]]
    assert (await town.waiting(tagged)).waiting_on == "budget"


@pytest.mark.own_writes
async def test_a_newcomer_that_the_executors_budget_does_not_cover_goes_to_a_machine(town: Any) -> None:
    """It was planned onto the running executor and taken off it again, at every plan."""
    near = await buys(town)
    first = await batch(town)
    await budget(
        town, "project:default", 1_900_000_000
    )  # one worst case at the endpoint, and a machine's hold of $0.84
    await Planner(town.services).step()
    rental = await runs(town, near)
    machine = town.offer(price="0.40")
    await town.list_offers(machine)
    second = await batch(town)
    await Planner(town.services).step()
    assert [(row.offer_key, row.purpose["batches"]) for row in await town.intents()] == [(str(machine.key), [second])]
    assert (await leased(town, rental), (await town.row(Worker, rental)).drain_reason) == ([first], None)


@pytest.mark.own_writes
async def test_an_executor_does_not_go_on_at_a_price_that_moved(town: Any) -> None:
    """It booked $0.505 by the old price, and the endpoint asked $5.05."""
    near = await buys(town)
    made = await batch(town)
    await Planner(town.services).step()
    rental = await runs(town, near)
    await town.list_offers(endpoint(), market="near")
    await Planner(town.services).step()
    assert (await town.row(Worker, rental)).drain_reason is None  # read anew, and the same
    await town.list_offers(endpoint("2", "20"), market="near")
    await Planner(town.services).step()
    assert "$1 in, $10 out a million" in (await town.row(Worker, rental)).drain_reason
    [follower] = await town.intents()
    assert follower.purpose["batches"] == [made] and follower.purpose["hold_nano"] == 2 * WORST


@pytest.mark.own_writes
@pytest.mark.parametrize(("limit", "is_placed"), [("1.01", False), ("1.02", True)])
async def test_a_batch_with_a_ceiling_is_bought_for_only_where_it_is_not_stopped_at_once(
    town: Any, limit: str, is_placed: bool
) -> None:
    """An executor may spend its whole limit in the dearest class before anyone looks: plan and ceiling reckon with the same."""
    near = await buys(town)
    made = await batch(town, max_usd=limit)
    await Planner(town.services).step()
    assert len(await town.intents()) == is_placed
    if is_placed:
        rental = await runs(town, near)
        await Accruer(town.services).step()
        assert (await town.row(Worker, rental)).drain_reason is None
        assert await leased(town, rental) == [made]


@pytest.mark.own_writes
async def test_an_endpoint_that_was_given_up_is_left_for_minutes_however_long_it_had_worked(town: Any) -> None:
    """It was tried again after 15 s, or at once after more than an hour: batches waited at a dead endpoint for ever."""
    near = await buys(town)
    await batch(town)
    await Planner(town.services).step()
    rental = await runs(town, near)
    async with town.database.transaction() as session:
        now_us = await db_now(session)
        row, worker = await session.get_one(RentalRow, rental), await session.get_one(Worker, rental)
        row.created_us, worker.state, worker.gone_us = now_us - 7200 * SECOND_US, "failed", now_us
    async with town.database.transaction() as session:
        held = await held_back(session, now_us + 299 * SECOND_US)
        over = await held_back(session, now_us + 301 * SECOND_US)
    assert list(held.of_projects) == [str(near.key)] and not held.everywhere
    assert not over.of_projects


@pytest.mark.own_writes
async def test_a_batch_that_an_endpoint_always_refuses_holds_it_back_for_its_own_project_alone(town: Any) -> None:
    """Answers of 5xx to one batch's every line kept all projects from the endpoint, for up to 40 minutes each time."""
    near = await buys(town)
    await batch(town)
    planner = Planner(town.services)
    await planner.step()
    rental = await runs(town, near)
    async with town.database.transaction() as session:
        now_us = await db_now(session)
        worker, row = await session.get_one(Worker, rental), await session.get_one(RentalRow, rental)
        worker.state, worker.gone_us, row.state, row.ended_us = "failed", now_us, "ended", now_us
    other = await batch(town, project="other")
    await planner.step()
    assert [(row.project, row.purpose["batches"]) for row in await town.intents()] == [("other", [other])]
    [mine] = [work.id for work in (await frozen_now(town)).works if work.project == "default"]
    waits = await town.waiting(mine)
    assert waits is not None and "held back for" in " ".join(waits.reasons)


async def frozen_now(town: Any) -> Snapshot:
    async with town.database.transaction() as session:
        return (await freeze(session, town.services, now_us=await db_now(session))).snapshot


@pytest.mark.own_writes
async def test_a_limit_of_dollars_an_hour_refuses_all_that_is_as_dear_at_once(town: Any) -> None:
    """Each of 30 dearer offers had a plan and a refusal of its own before the one beneath the limit was taken."""
    big = [
        replace(town.offer(price=str(1.5 + n / 100)), key=replace(town.offer().key, sku=f"big{n:03d}"))
        for n in range(30)
    ]
    small = replace(town.offer(price="0.90"), key=replace(town.offer().key, sku="small"))
    await town.list_offers(*big)
    made = await town.batch(lines=10)
    await budget(town, "project:default", 500 * DOLLAR, per_hour_nano=DOLLAR)
    planner = Planner(town.services)
    for _ in range(3):
        await planner.step()
    refused = [each for each in (await frozen_now(town)).refusals if each.work_id == made]
    assert [(each.offer_key, each.from_nano_hour) for each in refused] == [(str(big[0].key), 1_500_000_000)]
    waits = await town.waiting(made)
    assert waits.waiting_on == "budget" and "$1 an hour" in " ".join(waits.reasons), "said of all of them"
    await town.list_offers(*big, small)
    await planner.step()
    assert [row.offer_key for row in await town.intents()] == [str(small.key)]


@pytest.mark.own_writes
async def test_what_a_limit_of_dollars_an_hour_refused_is_tried_again_once_a_machine_has_ended(town: Any) -> None:
    """Only the money left in all was looked at: nothing as dear was tried for a minute, at last for 16, with nothing at work."""
    place = town.offer(price="0.90")
    await town.list_offers(place)
    running = await town.rental(place, purpose=(await town.batch(begun=False),), ran_s=60)
    team, made = await town.batch(project="other"), await town.batch(max_usd="5")
    await budget(town, "project:default", 5000 * DOLLAR, per_hour_nano=DOLLAR)
    async with town.database.transaction() as session:
        await drain_all(session, {running: "it is not needed"}, await db_now(session))
    planner = Planner(town.services)
    for _ in range(2):
        await planner.step()
    assert [row.purpose["batches"] for row in await town.intents()] == [[team]]
    assert (await town.waiting(made)).waiting_on == "budget"
    async with town.database.transaction() as session:
        row = await session.get_one(RentalRow, running)
        row.state, row.ended_us = "ended", await db_now(session)
    await planner.step()
    assert [made] in [row.purpose["batches"] for row in await town.intents()]


def test_a_refusal_counts_a_minute_then_twice_as_long_and_not_once_more_is_left() -> None:
    refusals, left = Refusals(), {"b": Left(5, None)}
    at = {"now": 0}

    def is_refused(after_s: int, of: Left | None = None) -> bool:
        at["now"] += after_s * SECOND_US
        return ("b", "o") in refusals.in_force({"b": of} if of else left, at["now"])

    refusals.note("b", "o", "too much", at["now"])
    assert is_refused(0) and is_refused(59) and not is_refused(1)
    refusals.note("b", "o", "too much", at["now"])
    assert is_refused(119) and not is_refused(1)
    refusals.note("b", "o", "too much", at["now"])
    assert is_refused(1) and is_refused(1, Left(4, None)) and not is_refused(1, Left(6, None)) and not is_refused(1)
    refusals.note("b", "o", "too much", at["now"])
    refusals.held("b", "o")
    assert not is_refused(1)
