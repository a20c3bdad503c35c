"""Evidence that a market gives again with each poll does not run out, at whichever point it is asked for."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

from broker.compliance.judging import Judged, judge
from broker.control.plan import Planner
from jobs.clock import db_now
from jobs.tables import Batch
from markets.offer import Offer
from markets.tables import OfferRow, RentalRow


def earlier(offer: Offer, by: timedelta) -> Offer:
    """The same offer as it was said then."""
    evidence = tuple(replace(each, observed_at=each.observed_at - by) for each in offer.evidence)
    return replace(offer, observed_at=offer.observed_at - by, evidence=evidence)


async def word(town: Any, rental_id: str, batch_id: str) -> Judged:
    async with town.database.transaction() as session:
        rental, batch = await session.get(RentalRow, rental_id), await session.get(Batch, batch_id)
        return await judge(session, town.services, rental, batch, await db_now(session))


async def test_planned_and_refused_in_circles_since_the_record_was_a_day_old(town: Any) -> None:
    """A ttl of a day; the offer was first stored 30 h ago, and said unchanged ever since."""
    now = town.offer()
    await town.list_offers(earlier(now, timedelta(hours=30)))
    await town.list_offers(now)
    [row] = await town.rows(OfferRow)
    assert row.record["observed_at"] != now.observed_at.isoformat(), "the record was written anew: this proves nothing"
    batch_id = await town.batch()
    await Planner(town.services).step()
    [intent] = await town.intents()
    said = await word(town, intent.id, batch_id)
    assert said.is_allowed, said.decision.reasons


async def test_a_machine_that_runs_for_more_than_a_day_is_given_work_while_its_market_says_the_same(town: Any) -> None:
    now = town.offer()
    before = earlier(now, timedelta(hours=30))
    await town.list_offers(before)
    batch_id = await town.batch()
    rental_id = await town.rental(before, purpose=(batch_id,), ran_s=30 * 3600)
    assert not (await word(town, rental_id, batch_id)).is_allowed, "nothing was said of it for 30 h"
    await town.list_offers(now)
    said = await word(town, rental_id, batch_id)
    assert said.is_allowed, said.decision.reasons


async def test_a_new_listing_gives_an_old_machine_no_permission_for_another_place(town: Any) -> None:
    there = earlier(replace(town.offer(), country="US"), timedelta(hours=30))
    batch_id = await town.batch()
    rental_id = await town.rental(there, purpose=(batch_id,), ran_s=30 * 3600)
    await town.list_offers(town.offer())
    assert not (await word(town, rental_id, batch_id)).is_allowed
