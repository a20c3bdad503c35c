"""A paused batch in the control loops: it takes no machine, and its own are given back; resumed, it is planned at once."""

from __future__ import annotations

from typing import Any

from broker.control.place import Placer
from broker.control.plan import Planner
from broker.tables import Worker
from jobs import changes
from markets.tables import RentalRow

MINUTE_US = 60_000_000


async def turn(town: Any, batch: str, event: str) -> None:
    async with town.database.transaction() as session:
        await getattr(changes, event)(session, "default", batch)


async def test_nothing_is_rented_for_a_paused_batch_until_it_is_resumed(town: Any) -> None:
    await town.list_offers(town.offer())
    batch = await town.batch()
    await turn(town, batch, "pause")
    planner = Planner(town.services)
    await planner.step()
    assert await town.intents() == []
    await turn(town, batch, "resume")
    await planner.step()
    assert len(await town.intents()) == 1


async def test_an_intent_of_a_batch_that_was_paused_meanwhile_is_not_carried_out(town: Any) -> None:
    await town.list_offers(town.offer())
    batch = await town.batch()
    await Planner(town.services).step()
    (intent,) = await town.intents()
    await turn(town, batch, "pause")
    await Placer(town.services, None).step()
    row = await town.row(RentalRow, intent.id)
    assert (row.state, row.error) == ("failed", "no batch needs it any more")


async def test_the_machines_of_a_paused_batch_drain_when_nobody_else_needs_them(town: Any) -> None:
    of = town.offer()
    await town.list_offers(of)
    batch, other = await town.batch(), await town.batch()
    rental = await town.rental(of, purpose=(batch,))
    town.database.clock_offset_us = MINUTE_US
    await turn(town, batch, "pause")
    planner = Planner(town.services)
    await planner.step()
    assert (await town.row(Worker, rental)).drain_reason is None, "the other batch works on it"
    await turn(town, other, "pause")
    await planner.step()
    assert (await town.row(Worker, rental)).drain_reason
