"""Rest: loops with nothing to do are let off, and none of what there is to do waits for that."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import pytest

from broker.control.rest import HOLDS_S, LET_OFF, RESTING, Rest
from broker.tables import Delivery
from jobs import outbox
from jobs.clock import db_now
from jobs.tables import Batch
from markets import rentals
from tests.broker.control.conftest import Town


@dataclass
class House:
    """Steps that only count, and a clock that is moved by hand."""

    town: Town
    now_s: float = 0.0
    ran: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.rest = Rest(self.town.database, clock=lambda: self.now_s)
        self.steps = self.rest.spare({name: (1.0, self._counted(name)) for name in ("plan", "poll")})

    def _counted(self, name: str) -> Any:
        async def step() -> None:
            self.ran[name] += 1

        return step

    async def tick(self, times: int) -> int:
        """How many of so many ticks the plan loop has worked on."""
        before = self.ran["plan"]
        for _ in range(times):
            await self.steps["plan"][1]()
        return self.ran["plan"] - before


@pytest.fixture
async def house(town: Town) -> House:
    house = House(town)
    assert await house.tick(1) == 1, "the first tick finds what a crash left behind"
    return house


async def test_a_step_is_let_off_while_there_is_nothing_to_do_and_runs_all_the_same_now_and_then(house: House) -> None:
    assert await house.tick(LET_OFF) == 0
    assert await house.tick(LET_OFF + 1) == 1
    for _ in range(5):
        await house.steps["poll"][1]()
    assert house.ran["poll"] == 5, "markets are polled at their own interval"


async def test_a_batch_ends_the_rest_at_once_and_its_end_begins_it(house: House, town: Town) -> None:
    assert await house.tick(2) == 0
    batch_id = await town.batch()
    assert await house.tick(3) == 3
    async with town.database.transaction() as session:
        (await session.get_one(Batch, batch_id)).status = "cancelled"
        await outbox.delivered(session, [each.id for each in await outbox.undelivered(session)], await db_now(session))
    assert await house.tick(2) == 0


async def test_a_machine_is_work_until_its_last_second_is_booked(house: House, town: Town) -> None:
    rental_id = await town.rental(town.offer(), purpose=())
    assert await house.tick(2) == 2
    async with town.database.transaction() as session:
        await rentals.lost(session, rental_id, error="gone", now_us=await db_now(session))
    assert await house.tick(2) == 2, "it is over, and not settled"
    async with town.database.transaction() as session:
        await rentals.settle(session, rental_id)
    assert await house.tick(2) == 0


async def test_a_webhook_that_is_due_is_work_and_one_that_is_due_later_is_not(house: House, town: Town) -> None:
    async with town.database.transaction() as session:
        now_us = await db_now(session)
        for event, next_us in (("evt_1", now_us), ("evt_2", now_us + 3_600_000_000)):
            session.add(
                Delivery(
                    webhook="wh", event=event, batch="batch_1", type="batch.completed", created_us=0, next_us=next_us
                )
            )
    assert await house.tick(2) == 2
    async with town.database.transaction() as session:
        (await session.get_one(Delivery, ("wh", "evt_1"))).next_us = None
    assert await house.tick(2) == 0


async def test_what_another_broker_commits_is_seen_as_soon_as_an_answer_does_not_hold(house: House, town: Town) -> None:
    assert await house.tick(2) == 0
    town.database.after_commit.remove(house.rest.stir)  # what follows is committed elsewhere
    await town.batch()
    assert await house.tick(1) == 0
    house.now_s += HOLDS_S
    assert await house.tick(1) == 1


async def test_one_query_answers_for_all_loops_until_something_is_committed(house: House, town: Town) -> None:
    assert await house.rest.is_resting()
    looks: list[Any] = []
    town.database.after_commit.append(looks.append)
    assert [await house.rest.is_resting() for _ in RESTING] == [True] * len(RESTING)
    assert looks == []
