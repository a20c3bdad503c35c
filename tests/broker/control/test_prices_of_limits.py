"""What limits cost, through the doors that people ask: `explain` of a batch, and `plan` of the queue."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from broker.control import what_if
from broker.control.explain import explanation
from broker.control.plan import Planner
from broker.control.what_if import ask


async def test_a_batch_is_told_what_its_residency_costs_and_who_decides(town: Any) -> None:
    await town.list_offers(town.offer("here", price="3.60"), town.offer("there", price="0.90", country="CH"))
    batch = await town.batch(lines=1000)
    await Planner(town.services).step()
    async with town.database.transaction() as session:
        told = await explanation(session, batch)
    by_field = {each.field: each.message for each in told.savings}
    assert by_field.keys() == {"residency", "residency.country"}
    assert "allowing CH would save $" in by_field["residency.country"]
    assert all("compliance decides" in message for message in by_field.values())
    assert [row.offer_key for row in await town.intents()] == [str(town.offer("here").key)]


async def test_the_plan_names_the_pool_that_the_queue_lacks(town: Any) -> None:
    cheap = replace(town.offer("cheap", price="0.36"), capacity=0)
    await town.list_offers(cheap, town.offer("dear", price="3.60"))
    await town.batch(lines=1000)
    answer = await ask(town.services, None)
    assert [each.offer_key for each in answer.scarce] == [str(cheap.key)]
    assert answer.scarce[0].saves_nano > 0


@pytest.mark.parametrize("small", [3_000, 0])
async def test_a_queue_of_any_size_is_told_of_the_pool_that_it_takes_to_the_last(
    town: Any, monkeypatch: Any, small: int
) -> None:
    monkeypatch.setattr(what_if, "SMALL", small)
    cheap = replace(town.offer("cheap", price="0.36"), capacity=1)
    await town.list_offers(cheap, town.offer("dear", price="3.60"))
    for project in ("default", "other"):
        await town.batch(lines=1000, project=project)
    [found] = (await ask(town.services, None)).scarce
    assert (found.offer_key, found.until_us is not None) == (str(cheap.key), True)
    assert ("estimated" in found.message) == (small == 0)
