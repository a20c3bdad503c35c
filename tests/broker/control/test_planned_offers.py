"""A plan reads what can be rented and what runs; the rest of the book is counted, told, and compared with."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from typing import Any

from broker.control.explain import explanation
from broker.control.plan import Planner
from broker.control.snapshot import Frozen, freeze
from jobs.clock import db_now
from markets import price_book
from markets.offer import Offer
from solver.types import Snapshot

DAY_US = 86_400_000_000


async def frozen(town: Any) -> Frozen:
    async with town.database.transaction() as session:
        return await freeze(session, town.services, now_us=await db_now(session))


def keys(snapshot: Snapshot) -> list[str]:
    return [each.key for each in snapshot.offers]


def at(offer: Offer, market: str) -> Offer:
    return replace(offer, key=replace(offer.key, market=market))


async def import_card(town: Any, *offers: Offer, market: str = "town") -> None:
    async with town.database.transaction() as session:
        now_us = await db_now(session)
        until_us = now_us + 30 * DAY_US
        await price_book.store_card(session, market, offers, by="ops", until_us=until_us, now_us=now_us)


async def test_every_row_that_was_ever_listed_was_read_for_each_plan(town: Any) -> None:
    one, two = town.offer("one"), town.offer("two")
    await town.list_offers(one, two)
    await town.list_offers(one)  # `two` is gone
    await town.list_offers(at(one, "elsewhere"), at(two, "elsewhere"), market="elsewhere")
    snapshot = (await frozen(town)).snapshot
    assert keys(snapshot) == [str(one.key)]
    assert [(each.count, "no longer lists" in (each.example or "")) for each in snapshot.apart] == [
        (2, False),
        (1, True),
    ]


async def test_the_offer_of_a_machine_that_runs_is_there_when_its_market_lists_it_no_more(town: Any) -> None:
    one, two = town.offer("one"), town.offer("two")
    await town.list_offers(one, two)
    await town.rental(two, purpose=(await town.batch(),))
    await town.list_offers(one)
    snapshot = (await frozen(town)).snapshot
    assert keys(snapshot) == sorted([str(one.key), str(two.key)])
    assert [each.offer_key for each in snapshot.running] == [str(two.key)]
    assert snapshot.apart == ()


async def test_what_is_left_out_is_told_where_a_batch_waits_and_counted_in_its_funnel(town: Any) -> None:
    await town.list_offers(at(town.offer(), "elsewhere"), market="elsewhere")
    batch = await town.batch()
    await Planner(town.services).step()
    waiting = await town.waiting(batch)
    assert waiting is not None and any("not among the markets to rent at" in each for each in waiting.reasons)
    async with town.database.transaction() as session:
        told = await explanation(session, batch)
    assert told.offers == 1 == sum(step.count for step in told.funnel)
    assert told.funnel[0].rule == "excluded"
    assert any("not among the markets to rent at" in each for each in told.reasons)


async def test_a_rental_is_compared_with_markets_that_are_not_rented_at(town: Any) -> None:
    elsewhere = at(replace(town.offer(price="9"), launch="vm"), "elsewhere")
    await town.list_offers(replace(town.offer(), key=replace(town.offer().key, pricing="spot")))
    await town.list_offers(elsewhere, market="elsewhere")
    await town.batch()
    await Planner(town.services).step()
    [intent] = await town.intents()
    assert intent.purpose["on_demand_nano_hour"] == 9 * 10**9


async def test_a_card_under_the_name_of_a_market_was_rented_at_until_the_first_good_poll(town: Any) -> None:
    card = town.offer(price="1")
    await import_card(town, card)
    await town.batch()
    await Planner(town.services).step()
    assert await town.intents() == []
    [apart] = (await frozen(town)).snapshot.apart
    assert apart.count == 1 and "prices of a card of 'town': nothing is rented" in (apart.example or "")
    await town.list_offers(replace(town.offer(), price=Decimal("3.6")))
    await Planner(town.services).step()
    [intent] = await town.intents()
    assert intent.price_nano_hour == 3_600_000_000


async def test_a_card_at_a_market_where_machines_run_lets_no_more_be_rented(town: Any) -> None:
    offer = town.offer()
    await town.list_offers(offer)
    await town.rental(offer, purpose=(await town.batch(),))
    await import_card(town, offer)
    [view] = (await frozen(town)).snapshot.offers
    assert "prices of a card" in (view.excluded or "")
