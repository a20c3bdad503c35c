"""What a policy costs in a month: estimated when a machine is decided on, kept with it, and told of the books' spend."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from broker.control.explain import explanation
from broker.control.plan import Planner
from broker.finance.policy_costs import month_of, monthly
from jobs.clock import db_now
from ledger.accrual import Meter, accrue

HOUR_US = 3_600_000_000


async def ran(town: Any, rental: Any, hours: int) -> None:
    """The hours of the machine that was intended, booked as they pass."""
    async with town.database.transaction() as session:
        now_us = await db_now(session)
        meter = Meter(
            rental=rental.id, offer_key=rental.offer_key, market=rental.market, pricing=rental.pricing,
            project=rental.project, batch=None, price_nano_hour=rental.price_nano_hour,
            started_us=now_us - hours * HOUR_US, granularity_s=1, minimum_s=0,
        )  # fmt: skip
        await accrue(session, meter, until_us=now_us, final=True, actor="test", recorded_at_us=now_us)


@pytest.mark.own_writes
async def test_a_month_and_a_batch_are_told_what_a_policy_cost_of_what_was_really_spent(town: Any) -> None:
    """In Germany for $3.60 an hour, where $0.90 would have done: three quarters of whatever the machine came to."""
    await town.list_offers(town.offer("here", price="3.60"), town.offer("there", price="0.90", country="CH"))
    batch = await town.batch(lines=1000)
    await Planner(town.services).step()
    (intent,) = await town.intents()
    (kept,) = intent.purpose["policies"]
    assert (kept["policy"], kept["of_ppm"], kept["instead"]) == (
        "countries:de",
        1_000_000,
        str(town.offer("there", country="CH").key),
    )
    assert kept["premium_ppm"] == pytest.approx(750_000, rel=0.02)
    async with town.database.transaction() as session:
        assert (await explanation(session, batch)).policy_month is None  # nothing was spent yet
    await ran(town, intent, hours=1)
    async with town.database.transaction() as session:
        period = month_of(await db_now(session))
        told = (await explanation(session, batch)).policy_month
        report = await monthly(session, period=period)
    assert told is not None and told.policy == "countries:de"
    assert Decimal(told.usd) == round(Decimal(told.of_usd) * kept["premium_ppm"] / 1_000_000, 9)
    assert "about $" in told.sentence and "planned again without it" in told.sentence
    assert (kept["by"], Decimal(told.estimated_usd)) == ("solved", 0)
    (row,) = report.sections[0].rows
    assert row[:4] == ("countries:de", "default", told.of_usd, told.usd)
