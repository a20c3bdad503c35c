"""What the live plan pays besides and instead of the hourly price: reservations, data that moves, deposits."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from typing import Any

from broker.control.explain import explanation
from broker.control.plan import Planner
from broker.control.snapshot import freeze
from jobs.clock import db_now
from markets.offer import Offer, OfferKey


def reserved(town: Any) -> Offer:
    key = OfferKey("town", None, None, "kept", "cpu", 0, "reserved")
    return replace(town.offer("kept"), key=key, price=Decimal(0), sunk_per_hour=Decimal("18.5"))


async def test_a_reservation_was_never_used_because_its_price_of_nothing_counted_as_unknown(town: Any) -> None:
    kept = reserved(town)
    await town.list_offers(kept, town.offer("cheap", price="0.10"))
    batch = await town.batch()
    await Planner(town.services).step()
    assert [row.offer_key for row in await town.intents()] == [str(kept.key)]
    async with town.database.transaction() as session:
        told = await explanation(session, batch)
    assert told.usd == "0"
    assert "cheapest of 2 eligible offers" in told.chosen[0].sentence


async def test_the_snapshot_has_what_moving_data_and_a_lost_deposit_cost(town: Any) -> None:
    offer = replace(
        town.offer("one"),
        key=replace(town.offer("one").key, region="eu-1", zone="eu-1b"),
        deposit=Decimal("2.50"),
        refundable_fraction=Decimal("0.2"),
        egress_per_gb=Decimal("0.09"),
        ingress_per_gb=Decimal("0.01"),
    )
    await town.list_offers(offer)
    await town.batch(lines=10)
    async with town.database.transaction() as session:
        snapshot = (await freeze(session, town.services, now_us=await db_now(session))).snapshot
    [view], [work] = snapshot.offers, snapshot.works
    assert (view.lost_nano, view.egress_nano_gb, view.ingress_nano_gb) == (2_000_000_000, 90_000_000, 10_000_000)
    assert view.domain == "town/eu-1"
    assert (work.input_bytes, work.output_bytes) == (4 * work.input_tokens, 4 * work.output_tokens_p50)


async def test_the_hold_of_a_machine_covers_the_deposit_that_it_keeps(town: Any) -> None:
    await town.list_offers(replace(town.offer("keeps", price="0.36"), deposit=Decimal(5)))
    await town.batch()
    await Planner(town.services).step()
    [row] = await town.intents()
    assert row.purpose["hold_nano"] > 5_000_000_000


async def test_the_hold_of_a_machine_covers_the_data_that_its_batches_move(town: Any) -> None:
    """The plan counted it and the hold left it out: 10 lines bring 40 bytes in and are expected to take 240 out."""
    dollar = Decimal(10**9)  # a byte, so that little data tells
    await town.list_offers(replace(town.offer(price="0.36"), egress_per_gb=dollar, ingress_per_gb=dollar))
    await town.batch()
    await Planner(town.services).step()
    [row] = await town.intents()
    assert 280 * 10**9 < row.purpose["hold_nano"] < 281 * 10**9


async def test_a_place_that_keeps_the_deposit_is_not_cheaper_for_a_short_batch(town: Any) -> None:
    keeps = replace(town.offer("keeps", price="1.00"), deposit=Decimal(5))
    await town.list_offers(keeps, town.offer("plain", price="3.60"))
    await town.batch()
    await Planner(town.services).step()
    assert [row.offer_key for row in await town.intents()] == [str(town.offer("plain").key)]
