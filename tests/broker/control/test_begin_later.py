"""The live plan waits for a better moment where there is time, says so, and begins when it comes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from broker.control.explain import explanation
from broker.control.later import postponed
from broker.control.plan import Planner
from broker.control.snapshot import freeze
from broker.control.waiting import Facts, expected_end
from broker.control.what_if import ask
from broker.tables import Worker
from jobs import batches
from jobs.clock import db_now
from markets import history
from markets.offer import Offer, OfferKey

HOUR_US = 3_600_000_000
SPOT_NANO = 300_000_000


def spot(town: Any, capacity: int) -> Offer:
    key = OfferKey("town", None, None, "often", "cpu", 0, "spot")
    return replace(town.offer("often", price="0.30"), key=key, capacity=capacity)


def spare(town: Any) -> Offer:
    """What is begun on where on-demand is sold out by then."""
    return town.offer("spare", price="9.00")


async def two_offers(town: Any, *, spot_capacity: int = 0) -> tuple[Offer, Offer]:
    """On-demand beside something dearer, and spot that was there for three of every four hours of the last week."""
    often, always = spot(town, spot_capacity), town.offer("always", price="3.60")
    async with town.database.transaction() as session:
        now_us = await db_now(session)
        rows = [
            {
                "key": str(often.key),
                "market": "town",
                "at_us": now_us - 168 * HOUR_US + hour * HOUR_US,
                "state": "listed",
                "price_nano_hour": SPOT_NANO,
                "capacity": 0 if hour % 4 == 3 else 4,
            }
            for hour in range(168)
        ]
        columns = {"input_nano": None, "output_nano": None, "reason": None}
        await history.append_changes(session, [row | columns for row in rows])
    await town.list_offers(often, always, spare(town))
    return often, always


async def test_a_batch_with_a_day_to_spare_does_not_pay_twelve_times_because_spot_is_gone_for_an_hour(
    town: Any,
) -> None:
    often, always = await two_offers(town)
    batch = await town.batch(lines=10_000)
    planner = Planner(town.services)
    await planner.step()
    assert await town.intents() == []
    waiting = await town.waiting(batch)
    assert waiting is not None and waiting.waiting_on == "later"
    assert str(often.key) in waiting.reasons[0]
    async with town.database.transaction() as session:
        told = await explanation(session, batch)
    [begins] = told.begins
    assert (begins.offer_key, begins.awaits, begins.why) == (str(always.key), str(often.key), "spot")
    assert begins.begin < (told.end or 0)
    # the door `broker plan` answers the same
    shown = await ask(town.services, None)
    assert [each.awaits for each in shown.plan.later] == [str(often.key)]
    # it comes back: begun at once, and no word of waiting is left
    await town.list_offers(spot(town, 4), always, spare(town))
    await planner.step()
    assert [row.offer_key for row in await town.intents()] == [str(often.key)]
    assert await town.waiting(batch) is None


async def test_two_weeks_of_records_were_read_again_with_every_plan_while_the_decision_to_wait_held(town: Any) -> None:
    await two_offers(town)
    await town.batch(lines=10_000)
    planner = Planner(town.services)
    await planner.step()
    assert planner.plan is not None
    async with town.database.transaction() as session:
        snapshot = (await freeze(session, town.services, now_us=await db_now(session))).snapshot
    plan = await town.services.solver.solve(snapshot)
    recorded, moved = await postponed(town.services, snapshot, plan, planner.plan.later)
    assert moved.later == planner.plan.later
    assert (recorded.waits, recorded.records) == (planner.plan.later, ())


async def test_where_the_settings_want_everything_at_once_nothing_waits(town: Any) -> None:
    _, always = await two_offers(town)
    await town.batch(lines=10_000)
    settings = town.services.settings
    at_once = settings.model_copy(update={"control": settings.control.model_copy(update={"begin_later": False})})
    await Planner(replace(town.services, settings=at_once)).step()
    assert [row.offer_key for row in await town.intents()] == [str(always.key)]


async def test_a_batch_whose_deadline_is_near_begins_on_demand(town: Any) -> None:
    _, always = await two_offers(town)
    await town.batch(lines=40_000)  # eleven hours of the 24, and twice that must fit
    await Planner(town.services).step()
    assert [row.offer_key for row in await town.intents()] == [str(always.key)]


def test_the_end_of_what_waits_is_the_plans() -> None:
    facts = Facts(
        now_us=0, status="in_progress", ending=None, created_us=0, expires_us=24 * HOUR_US,
        planned_end_us=9 * HOUR_US, lines=1, open_lines=1,
    )  # fmt: skip
    assert expected_end(facts, "later") == (9 * HOUR_US, "plan")


async def test_a_batch_of_another_project_waits_for_the_cheap_machine_that_is_at_work_and_takes_it_when_it_is_free(
    town: Any,
) -> None:
    """Ten times the price was paid at once, beside a machine that was free an hour later."""
    cheap = replace(town.offer("cheap", price="0.36"), capacity=0)
    await town.list_offers(cheap, town.offer("always", price="3.60"), spare(town))
    first = await town.batch(lines=3_000)
    rental = await town.rental(cheap, purpose=(first,))
    second = await town.batch(lines=10_000, project="other")
    planner = Planner(town.services)
    await planner.step()
    assert await town.intents() == []
    waiting = await town.waiting(second)
    assert waiting is not None and waiting.waiting_on == "later"
    assert f"waits for {cheap.key}: in use until about" in waiting.reasons[0]
    async with town.database.transaction() as session:
        [begins] = (await explanation(session, second)).begins
    assert (begins.why, begins.awaits) == ("free", str(cheap.key))
    # its work is done: the machine is given back at once, not kept warm for work that may come
    async with town.database.transaction() as session:
        await batches.cancel(session, "default", first)
    await planner.step()
    assert (await town.row(Worker, rental)).drain_reason == "the plan no longer needs it"
    assert await town.intents() == []
    # and its market offers it again
    await town.list_offers(town.offer("cheap", price="0.36"), town.offer("always", price="3.60"), spare(town))
    await planner.step()
    assert [row.offer_key for row in await town.intents()] == [str(cheap.key)]
