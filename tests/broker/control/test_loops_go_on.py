"""One bad batch, rental or market must not stop the others; what cannot go on waits or ends, and says why."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from sqlalchemy import update

from broker.control.accrue import Accruer
from broker.control.place import Placer
from broker.control.plan import Planner
from broker.control.poll import Poller
from broker.control.reconcile import Reconciler
from broker.control.settle import Settler
from broker.control.snapshot import freeze
from broker.control.validate import Validator
from broker.keys import ensure_admin_key
from broker.tables import PlanRow, Worker
from jobs import batches
from jobs.clock import db_now
from jobs.tables import Batch
from ledger import audit
from ledger.accrual import read_meter
from ledger.book import post
from ledger.budgets import grant
from ledger.event import Dims, Event, Line
from markets import rentals
from markets.market import Rental
from markets.tables import PollRow, RentalRow

SECOND_US = 1_000_000


async def change(town: Any, table: type[Any], key: str, **values: Any) -> None:
    async with town.database.transaction() as session:
        row = await session.get_one(table, key)
        for name, value in values.items():
            setattr(row, name, value)


async def excluded(town: Any) -> dict[str, str | None]:
    async with town.database.transaction() as session:
        frozen = await freeze(session, town.services, now_us=await db_now(session))
    return {view.key: view.excluded for view in frozen.snapshot.offers}


# --- plan ------------------------------------------------------------------------------------------------------------


async def test_a_batch_without_its_policy_runs_nowhere_and_stops_nobodys_plan(town: Any) -> None:
    await town.list_offers(town.offer())
    orphan, whole = await town.batch(), await town.batch()
    await change(town, Batch, orphan, policy_hash="gone")
    await Planner(town.services).step()
    assert await town.assigned(whole)
    assert await town.assigned(orphan) == []
    assert [row.purpose["batches"] for row in await town.intents()] == [[whole]]


async def test_a_plan_that_was_rolled_back_is_made_again(town: Any, monkeypatch: Any) -> None:
    """Its digest was remembered although nothing of it was stored: the next rounds ended in a defect, for ever."""
    await town.list_offers(town.offer())
    await town.batch()
    planner = Planner(town.services)

    async def refuse(*_: Any, **__: Any) -> None:
        raise OSError("disk I/O error")

    with monkeypatch.context() as broken:
        broken.setattr(rentals, "record_intent", refuse)
        try:
            await planner.step()
        except OSError:
            assert await town.rows(PlanRow) == []
    await planner.step()
    assert len(await town.rows(PlanRow)) == len(await town.intents()) == 1


async def test_a_batch_that_was_cancelled_while_the_plan_was_made_rents_nothing(town: Any) -> None:
    await town.list_offers(town.offer())
    batch = await town.batch()
    planner = Planner(town.services)
    async with town.database.transaction() as session:
        frozen = await freeze(session, town.services, now_us=await db_now(session))
    plan = await town.services.solver.solve(frozen.snapshot)
    assert plan.starts
    async with town.database.transaction() as session:
        await batches.cancel(session, "default", batch)
        await planner._act(session, frozen, plan, {})
    assert await town.intents() == []
    assert await town.assigned(batch) == []


async def test_a_budget_that_covers_no_hold_is_told_as_what_the_batch_waits_for(town: Any) -> None:
    """It was assigned, nothing was rented, and it waited on nothing that anybody could see."""
    await town.list_offers(town.offer())
    batch = await town.batch(lines=20)
    async with town.database.transaction() as session:
        now_us = await db_now(session)
        await grant(session, grant_id="g", project="default", nano=25_000_000, occurred_at_us=now_us, actor="test")
    await Planner(town.services).step()
    assert await town.intents() == []
    waiting = await town.waiting(batch)
    assert waiting is not None
    assert waiting.waiting_on == "budget"
    assert "has $0.025 left" in waiting.reasons[0]


async def test_what_was_rented_since_the_last_poll_is_not_offered_again(town: Any) -> None:
    """The price book still said 4: each plan before the next poll rented as many again, and all of them failed."""
    await town.list_offers(town.offer())
    await town.batch(lines=20)
    await Planner(town.services).step()
    (row,) = await town.intents()
    assert await capacity(town) == 3
    counted_us = round(town.offer().observed_at.timestamp() * SECOND_US)
    await change(town, RentalRow, row.id, state="running", started_us=counted_us - 3600 * SECOND_US)
    assert await capacity(town) == 4, "the market had it in its count"


async def capacity(town: Any) -> int | None:
    async with town.database.transaction() as session:
        frozen = await freeze(session, town.services, now_us=await db_now(session))
    (view,) = frozen.snapshot.offers
    found: int | None = view.capacity
    return found


async def test_an_offer_on_which_starting_fails_is_held_back(town: Any) -> None:
    """Each of these was rented again at once, without end."""
    failing = {name: town.offer(name) for name in ("goodbye", "died", "mute", "fine", "regretted", "sent-away")}
    await town.list_offers(*failing.values())
    batch = await town.batch()
    made = {name: await town.rental(of, purpose=(batch,)) for name, of in failing.items()}
    await change(town, Worker, made["goodbye"], state="failed", error="the engine exited with 3")
    await change(town, RentalRow, made["died"], state="ended", end_reason="exited")
    await change(town, Worker, made["died"], state="gone", ready_us=None)
    # its worker was refused because we had given the machine back already, and ended with a status that is not 0
    await change(town, RentalRow, made["sent-away"], state="ended", end_reason="exited", release_us=1)
    await change(town, Worker, made["sent-away"], state="gone", ready_us=None)
    await change(town, RentalRow, made["mute"], created_us=0)
    await change(town, Worker, made["mute"], state="awaited", ready_us=None)
    await change(town, RentalRow, made["regretted"], state="failed", release_us=1)
    reconciler = Reconciler(town.services)
    await reconciler._leaving("town")
    town.database.clock_offset_us += 130 * SECOND_US
    await change(town, RentalRow, made["mute"], created_us=int(datetime.now(UTC).timestamp() * 1e6))
    await reconciler._leaving("town")
    assert (await town.row(RentalRow, made["mute"])).state == "releasing"
    await change(town, Worker, made["goodbye"], gone_us=int(datetime.now(UTC).timestamp() * 1e6) + 129 * SECOND_US)
    await change(town, Worker, made["died"], gone_us=int(datetime.now(UTC).timestamp() * 1e6) + 129 * SECOND_US)
    told = await excluded(town)
    held = {name for name, of in failing.items() if "held back" in (told[str(of.key)] or "")}
    assert held == {"goodbye", "died", "mute"}


# --- place -----------------------------------------------------------------------------------------------------------


async def intended(town: Any) -> str:
    await town.list_offers(town.offer())
    await town.batch()
    await Planner(town.services).step()
    (row,) = await town.intents()
    return str(row.id)


async def test_an_intent_of_a_model_that_is_gone_from_the_settings_fails_with_its_reason(town: Any) -> None:
    rental = await intended(town)
    await Placer(replace(town.services, models={}), None).step()
    row = await town.row(RentalRow, rental)
    assert (row.state, row.settled) == ("failed", True)
    assert "not configured any more" in row.error


async def test_an_intent_from_before_a_long_stop_is_planned_again_not_carried_out(town: Any) -> None:
    """Prices and facts may have changed since; and it is not the offer's failure."""
    rental = await intended(town)
    town.database.clock_offset_us = 86_400 * SECOND_US
    await Placer(town.services, None).step()
    row = await town.row(RentalRow, rental)
    assert (row.state, row.attempts) == ("failed", 1)
    assert "planned again" in row.release_reason
    assert "held back" not in ((await excluded(town))[row.offer_key] or "")


async def test_an_intent_that_is_taken_back_while_others_are_placed_stops_none_of_them(town: Any) -> None:
    rental = await intended(town)
    placer = Placer(town.services, None)
    async with town.database.transaction() as session:
        now_us = await db_now(session)
        await rentals.request_release(session, rental, reason="the plan no longer needs it", now_us=now_us)
    await placer._create(rental)
    row = await town.row(RentalRow, rental)
    assert (row.attempts, row.release_reason) == (0, "the plan no longer needs it")


async def test_an_intent_that_no_batch_needs_any_more_is_not_carried_out(town: Any) -> None:
    rental = await intended(town)
    async with town.database.transaction() as session:
        await session.execute(update(Batch).values(status="cancelling"))
    await Placer(town.services, None).step()
    assert (await town.row(RentalRow, rental)).release_reason == "no batch needs it any more"


# --- markets ---------------------------------------------------------------------------------------------------------


async def test_a_market_that_lists_an_offer_twice_is_a_failed_poll(town: Any) -> None:
    class Twice:
        async def offers(self) -> list[Any]:
            return [town.offer(), town.offer()]

    await Poller(replace(town.services, markets={"town": Twice()})).step()
    (poll,) = await town.rows(PollRow)
    assert "listed twice" in poll.error


async def test_rentals_of_a_market_that_is_gone_from_the_settings_take_no_more_work(town: Any) -> None:
    of = town.offer()
    batch = await town.batch()
    rental = await town.rental(of, purpose=(batch,))
    await Reconciler(replace(town.services, markets={})).step()
    assert "not configured any more" in (await town.row(Worker, rental)).drain_reason
    assert (await town.row(RentalRow, rental)).state == "running", "nobody confirmed its end: it may still cost money"


async def test_one_rental_that_cannot_be_settled_keeps_no_other_from_it(town: Any) -> None:
    of = town.offer()
    batch = await town.batch()
    made = [await town.rental(of, purpose=(batch,), ran_s=5) for _ in range(2)]
    for rental in made:
        now = datetime.now(UTC)
        seen = Rental(
            tag=rental,
            offer_key=of.key,
            state="ended",
            price=of.price or Decimal(0),
            currency="USD",
            started_at=now,
            ended_at=now,
            seen_at=now,
            end_reason="released",
        )
        async with town.database.transaction() as session:
            await rentals.observe(session, seen, now_us=await db_now(session))
    await change(town, RentalRow, made[0], granularity_s=0)
    await Settler(town.services).step()
    assert [(await town.row(RentalRow, rental)).settled for rental in made] == [False, True]


# --- validate --------------------------------------------------------------------------------------------------------


async def fresh(town: Any) -> str:
    """A batch of one real line that is not validated yet."""
    batch = await town.batch(begun=False)
    line = (
        b'{"custom_id":"a","method":"POST","url":"/v1/chat/completions",'
        b'"body":{"model":"tiny","messages":[{"role":"user","content":"x"}]}}\n'
    )
    stored = await town.services.store.put(f"default/files/{batch}", line)
    await change(town, Batch, batch, input_key=stored.key)
    return str(batch)


async def test_a_batch_that_cannot_be_validated_keeps_no_other_waiting(town: Any) -> None:
    await town.list_offers(town.offer())
    bad, good = await fresh(town), await fresh(town)
    await change(town, Batch, bad, policy_hash="gone")
    await Validator(town.services).step()
    assert (await town.status(bad), await town.status(good)) == ("validating", "in_progress")


async def test_a_batch_is_not_refused_for_what_a_silent_market_may_have(town: Any) -> None:
    """The first market had only the US, the second had not answered yet: the batch for Germany failed for good."""
    await town.list_offers(town.offer(country="US"))
    absent = town.services.markets["town"]
    both = {"town": absent, "village": absent}
    first, second = await fresh(town), await fresh(town)
    await change(town, Batch, second, status="cancelled")
    await Validator(replace(town.services, markets=both)).step()
    assert await town.status(first) == "in_progress"
    await change(town, Batch, second, status="validating")
    await Validator(town.services).step()
    assert await town.status(second) == "failed"


# --- start -----------------------------------------------------------------------------------------------------------


async def test_an_admin_key_that_nobody_wrote_down_is_made_anew(town: Any) -> None:
    """The process died between making it and writing it: the folder's owner was locked out."""
    async with town.database.transaction() as session:
        first = await ensure_admin_key(session, 1, is_kept=False)
        assert first is not None
        assert await ensure_admin_key(session, 2, is_kept=True) is None
        second = await ensure_admin_key(session, 3, is_kept=False)
        assert second not in (None, first)


# --- accrue ----------------------------------------------------------------------------------------------------------


async def test_a_meter_key_that_nobody_can_read_ends_no_accrual_round(town: Any) -> None:
    """A person's correction with a key like a meter's: every round ended in a ValueError at that rental, for ever."""
    of = town.offer()
    await town.list_offers(of)
    batch = await town.batch()
    poisoned, whole = [await town.rental(of, purpose=(batch,), ran_s=60) for _ in range(2)]
    event = Event(
        key=f"accrue:{poisoned}:mine", kind="correction", occurred_at_us=1, actor="ada", corrects=f"hold.open:{poisoned}",
        dims=Dims(project="default", rental=poisoned),
        lines=(Line(account="Expenses:Compute:Spot:Town", nano=-5), Line(account="Liabilities:Accrued:Town", nano=5)),
    )  # fmt: skip
    async with town.database.transaction() as session:
        await post(session, event, recorded_at_us=1)
    await Accruer(town.services).step()
    async with town.database.transaction() as session:
        assert (await read_meter(session, whole)).seconds == 60
        assert [each.code for each in await audit.check(session)] == ["meter_differs"]
