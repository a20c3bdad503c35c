"""What a market grants an account is in the snapshot: a plan never asks for more, and what waits for it says so."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from broker.control.plan import Planner
from broker.control.snapshot import freeze
from jobs.clock import db_now
from markets.offer import Offer, QuotaShare
from solver.types import Quota


def counted(offer: Offer, units: int, left: int) -> Offer:
    return replace(offer, capacity=None, quota=QuotaShare("town/eu/L-1", units, left, "vCPU"))


async def quotas(town: Any) -> tuple[Quota, ...]:
    async with town.database.transaction() as session:
        return (await freeze(session, town.services, now_us=await db_now(session))).snapshot.quotas


async def test_a_batch_that_no_quota_is_left_for_waits_on_the_quota_and_starts_when_it_is_raised(town: Any) -> None:
    await town.list_offers(counted(town.offer("one"), 48, 47), counted(town.offer("two"), 96, 47))
    batch = await town.batch()
    await Planner(town.services).step()
    waiting = await town.waiting(batch)
    assert waiting is not None and waiting.waiting_on == "quota"
    assert any("47 are left, one instance counts 48" in each for each in waiting.reasons)
    await town.list_offers(counted(town.offer("one"), 48, 48), counted(town.offer("two"), 96, 48))
    await Planner(town.services).step()
    assert await town.waiting(batch) is None


async def test_a_machine_that_was_rented_after_the_market_counted_is_taken_off_what_it_said(town: Any) -> None:
    one = counted(town.offer("one"), 4, 10)
    await town.list_offers(one, counted(town.offer("two"), 2, 10))
    await town.rental(one, purpose=(await town.batch(),))
    assert await quotas(town) == (Quota(market="town/eu/L-1", remaining=6),)
    await town.list_offers(counted(town.offer("one"), 4, 6), counted(town.offer("two"), 2, 6))
    assert [each.remaining for each in await quotas(town)] == [6], "the market counts it itself now"


async def test_without_an_answer_about_quotas_there_is_no_limit_to_invent(town: Any) -> None:
    await town.list_offers(town.offer("one"))
    assert await quotas(town) == ()
