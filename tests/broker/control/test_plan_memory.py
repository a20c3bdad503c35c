"""Plans are kept as long as somebody goes by them, and the newest of the rest; not all of them for ever."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import delete, update

from broker.control import garbage
from broker.control.explain import explanation
from broker.control.garbage import GarbageCollector
from broker.control.plan import Planner
from broker.settings import ControlSettings, Settings
from broker.tables import Assignment, PlanRow, Waiting
from jobs.tables import Batch
from markets.tables import RentalRow


async def plans(town: Any, count: int) -> None:
    async with town.database.transaction() as session:
        for n in range(count):
            session.add(
                PlanRow(id=f"plan_{n}", created_us=10 + n, snapshot_sha256="", snapshot=b"a whole town", plan=b"")
            )


async def collect(town: Any, keep: int) -> list[str]:
    settings = Settings(data=town.services.settings.data, control=ControlSettings(keep_plans=keep))
    await GarbageCollector(replace(town.services, settings=settings)).step()
    return sorted(row.id for row in await town.rows(PlanRow))


async def test_every_plan_was_kept_with_its_snapshot_for_ever(town: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(garbage, "PLANS_AT_ONCE", 2)
    await plans(town, 8)
    assert await collect(town, 9) == [f"plan_{n}" for n in range(8)]
    assert await collect(town, 3) == ["plan_5", "plan_6", "plan_7"]


@pytest.mark.own_writes
async def test_a_plan_that_an_open_batch_or_a_machine_goes_by_is_kept(town: Any) -> None:
    await plans(town, 8)
    offer = town.offer()
    assigned, waits, ended = [await town.batch() for _ in range(3)]
    rental = await town.rental(offer, purpose=(assigned,))
    async with town.database.transaction() as session:
        for batch, plan in ((assigned, "plan_0"), (ended, "plan_1")):
            session.add(Assignment(batch=batch, offer_key=str(offer.key), plan=plan, rank=0, cost_nano=0, end_us=0))
        session.add(Waiting(batch=waits, plan="plan_2", waiting_on="capacity", reasons=[], relaxations=[], since_us=0))
        (await session.get_one(RentalRow, rental)).purpose = {"batches": [assigned], "plan": "plan_3"}
        await session.execute(update(Batch).where(Batch.id == ended).values(status="completed"))
    assert await collect(town, 1) == ["plan_0", "plan_2", "plan_3", "plan_7"]
    async with town.database.transaction() as session:
        told = await explanation(session, ended)
    assert told.reasons == ["its last plan is not kept any more: the batch has ended (settings: control.keep_plans)"]


async def test_an_unchanged_plan_that_was_forgotten_is_stored_again(town: Any) -> None:
    batch = await town.batch()  # nothing is listed: it waits
    planner = Planner(town.services)
    await planner.step()
    async with town.database.transaction() as session:
        await session.execute(delete(PlanRow))
    await planner.step()
    [row] = await town.rows(PlanRow)
    assert (await town.waiting(batch)).plan == row.id
