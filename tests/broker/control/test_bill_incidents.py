"""Other tools' incidents about what is charged, each as a test that would have caught it.

Named elsewhere, or none of ours (../shared/research/ledger.md, section 4):

| incident | where |
| --- | --- |
| SkyPilot #976: stale prices | `tests/markets/test_price_book.py` (excluded by age), and here: an intent that waited |
| LiteLLM #40100: streamed rows are 0 | here; an answer without usage weighs a line |
| OpenCost #2243: an outlier guard drops points | `tests/markets/test_price_history.py` (quarantined, shown with its reason) |
| OpenCost #1745, #119, kubecost #863: no CSV by API for years | `tests/broker/api/test_ledger_exports.py` |
| rackerlabs/spot #15, Azure docs PR #791, ultralytics/hub #1015 | here, and `tests/ledger/test_waste.py` |
"""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import select
from sqlmodel import col

from broker.budgets import Placement, admit
from broker.control.accrue import Accruer
from broker.control.anomalies import AnomalyWatch
from broker.control.place import Placer
from broker.control.plan import hold_nano
from broker.control.reconcile import silence
from broker.costs import batch_costs
from broker.finance.spend import cells
from broker.finance.tables import AnomalyRow
from broker.settings import ControlSettings
from broker.tables import Worker
from jobs.clock import db_now
from jobs.tables import Part, Shard
from ledger.errors import HoldExceeded
from ledger.money import cost_of_seconds
from ledger.reconcile.match import INNOCENT, Accrued, reconcile
from ledger.unit_costs import Tokens, unit_costs
from markets import rentals
from markets.tables import RentalRow
from solver.types import Start
from tests.broker.control.conftest import offer
from tests.broker.control.test_budget_tree import budget, hold
from tests.broker.control.test_settled_costs import end, expenses
from tests.ledger.test_reconcile import bill, line

DOLLAR = 10**9
SECOND_US = 1_000_000
HOUR_US = 3600 * SECOND_US
MILLI = 1_000_000


async def commit(town: Any, batch: str, rental: str, seq: int, **more: Any) -> None:
    async with town.database.transaction() as session:
        shard = await session.scalar(select(col(Shard.id)).where(col(Shard.batch_id) == batch))
        started_us = (await session.get_one(RentalRow, rental)).started_us
        given = {"completed": 1, "prompt_tokens": 0, "completion_tokens": 0} | more
        session.add(
            Part(shard_id=shard, epoch=1, seq=seq, batch_id=batch, placement_id=rental, key=f"k{seq}", size=1, sha256="0",
                 lines=[[seq, seq + 1]], usage=b"[]", counters={}, outcome="committed", counted=True,
                 committed_us=started_us, **given)
        )  # fmt: skip


async def spent(town: Any) -> int:
    async with town.database.transaction() as session:
        return sum(each.nano for each in await cells(session, since_us=0, until_us=2**62))


async def test_litellm_37358_a_batch_that_came_in_many_parts_pays_for_all_of_them(town: Any) -> None:
    """55 % of a turn was not counted, for only some of its parts were. Here a machine's cost is all somebody's, always."""
    of = town.offer()
    await town.list_offers(of)
    ours, theirs = await town.batch(), await town.batch()
    rental = await town.rental(of, purpose=(ours, theirs), ran_s=100)
    for seq in range(9):
        await commit(town, ours, rental, seq, prompt_tokens=10 * seq, completion_tokens=seq)
    await commit(town, theirs, rental, 1, prompt_tokens=40, completion_tokens=4)
    await end(town, of, rental)
    async with town.database.transaction() as session:
        costs = await batch_costs(session, [ours, theirs])
    assert (costs[ours].nano, costs[theirs].nano) == (90 * MILLI, 10 * MILLI)


async def test_litellm_40100_answers_without_usage_are_not_free_and_their_unit_cost_is_unknown(town: Any) -> None:
    """Streamed rows were logged with 0 tokens, so they cost 0."""
    of = town.offer()
    await town.list_offers(of)
    batch = await town.batch()
    rental = await town.rental(of, purpose=(batch,), ran_s=100)
    await commit(town, batch, rental, 1, completed=3)
    await end(town, of, rental)
    async with town.database.transaction() as session:
        assert (await batch_costs(session, [batch]))[batch].nano == 100 * MILLI
    told = unit_costs(100 * MILLI, Tokens(0, 0, 0, 0), requests=3, useful=3, busy_ms=0)
    assert (told.per_million_total, told.per_million_output, told.per_request) == (None, None, 33_333_333)


async def test_opencost_2640_a_machine_costs_its_own_offers_price_whatever_like_it_is_listed(town: Any) -> None:
    """The price of another offer of the same machine was taken (a region, a tier, a licence)."""
    mine = town.offer("same", price="3.60")
    others = [
        replace(mine, key=replace(mine.key, **other), price=Decimal(price))
        for other, price in (({"pricing": "spot"}, "0.36"), ({"region": "eu"}, "7.20"), ({"sku": "same-win"}, "36"))
    ]
    await town.list_offers(*others, mine)
    rental = await town.rental(mine, purpose=(await town.batch(),), ran_s=100)
    await end(town, mine, rental)
    assert await spent(town) == 100 * MILLI


@pytest.mark.parametrize(
    ("hours", "dollars", "code"), [("12", "24", "longer"), ("10", "20.00", "exact"), ("10", "36", "price_moved")]
)
def test_opencost_1409_what_differs_from_the_providers_meter_is_in_front_of_a_person(
    hours: str, dollars: str, code: str
) -> None:
    """It differed from GKE's metering, and nobody was told how much of it was time and how much price."""
    ours = Accrued(subject="rental_1", project="p", nano=20 * DOLLAR, quantity=36_000, price_nano=2 * DOLLAR)
    [found] = reconcile(bill(line(dollars, hours=Decimal(hours))), {"rental_1": ours}).variances
    assert found.code == code
    assert found.time_nano + found.price_nano + found.rest_nano == found.nano
    assert (code in INNOCENT) == (code == "exact")


@given(count=st.integers(1, 16), hours=st.integers(1, 100), nano=st.integers(10**6, 10**11))
def test_opencost_2029_the_price_of_a_machine_with_gpus_is_neither_divided_nor_multiplied(
    count: int, hours: int, nano: int
) -> None:
    """Prices of GPU nodes were divided by about 20 (their parts' sum); dstack #1890 multiplied by the GPUs."""
    one = offer(price=str(Decimal(nano).scaleb(-9)))
    many = replace(one, key=replace(one.key, accelerator="h100-sxm", count=count))
    bare = ControlSettings(hold_buffer=Decimal(1))
    held = [
        hold_nano(each, Start(offer_key=str(each.key), count=1, project="p", model="m", precision="bf16", from_us=0,
                              until_us=hours * HOUR_US, cost_nano=0), bare, 0)
        for each in (one, many)
    ]  # fmt: skip
    assert held[0] == held[1]
    assert held[0] == cost_of_seconds(nano, hours * 3600 + bare.unseen_s + one.granularity_s)


async def test_skypilot_4914_a_spot_machine_that_costs_more_than_was_shown_is_told_in_its_first_interval(
    town: Any,
) -> None:
    """Spot through the tool was dearer than on demand (0.49 $/h for shown 0.28): it was seen on the provider's page."""
    shown = replace(town.offer(price="0.28"), key=replace(town.offer().key, pricing="spot"))
    await town.list_offers(shown)
    rental = await town.rental(shown, purpose=(await town.batch(),), ran_s=60)
    async with town.database.transaction() as session:
        (await session.get_one(RentalRow, rental)).price_nano_hour = 490_000_000
    await Accruer(town.services).step()
    await AnomalyWatch(town.services).step()
    assert [(each.rule, each.scope) for each in await town.rows(AnomalyRow)] == [
        ("charged_above_quote", f"rental:{rental}")
    ]


async def test_skypilot_976_an_intent_whose_price_grew_old_is_planned_again_and_not_rented(town: Any) -> None:
    """Machines were chosen by prices of weeks ago."""
    of = town.offer()
    await town.list_offers(of)
    batch = await town.batch()
    async with town.database.transaction() as session:
        yesterday_us = await db_now(session) - 24 * HOUR_US
        await rentals.record_intent(session, rental_id="rental_old", offer=of, project="default", model="tiny",
                                    precision="auto", purpose={"batches": [batch]}, now_us=yesterday_us)  # fmt: skip
    await Placer(town.services, None).step()
    found = await town.row(RentalRow, "rental_old")
    assert (found.state, found.started_us) == ("failed", None)
    assert "planned again" in (found.release_reason or "")


async def test_skypilot_1645_and_1780_after_its_confirmed_end_a_machine_costs_nothing_more_and_until_then_it_does(
    town: Any,
) -> None:
    """The cost report of machines that stopped by themselves "may not be accurate"."""
    of = town.offer()
    await town.list_offers(of)
    rental = await town.rental(of, purpose=(await town.batch(),), ran_s=60)
    await Accruer(town.services).step()
    running = await spent(town)
    assert running >= 60 * MILLI
    await end(town, of, rental)  # by the market's own clock after 100 s
    for _ in range(2):
        await Accruer(town.services).step()
    assert await spent(town) == 100 * MILLI


async def test_skypilot_3103_and_8766_a_most_that_an_hour_may_cost_is_enforced_and_no_dearer_machine_is_taken(
    town: Any,
) -> None:
    """Asked for: a maximum price per hour. Ours is a budget's limit an hour; each intent has its
    price as its ceiling besides (a market that asks for more answers `price_moved`, `tests/markets/test_sandbox_api.py`)."""
    await budget(town, "project:default", 5000, per_hour_nano=4 * DOLLAR)
    of = town.offer()
    await town.list_offers(of)
    await town.rental(of, purpose=(await town.batch(),))
    with pytest.raises(HoldExceeded, match="an hour"):
        async with town.database.transaction() as session:
            asked = Placement("default", (), DOLLAR, price_nano_hour=DOLLAR)
            await admit(session, asked, now_us=await db_now(session))
    assert await hold(town, "cheap", DOLLAR, price_nano_hour=300_000_000)


@pytest.mark.parametrize(
    ("market", "pricing", "ran_s", "now_s", "is_let_go"),
    [
        ("aws", "spot", 600, 30, False),  # AWS takes it in 90 s, and asks nothing for it
        ("aws", "spot", 600, 181, True),  # it did not: a recommendation, nothing more
        ("aws", "spot", 3600, 30, True),  # beyond the first hour every second is paid
        ("aws", "on_demand", 600, 30, True),
        ("gcp", "spot", 600, 30, True),
        ("azure", "spot", 600, 30, True),  # Azure docs PR #791: what is evicted is billed
    ],
)
def test_runs_on_365_a_spot_machine_in_its_free_first_hour_is_left_to_aws(
    market: str, pricing: str, ran_s: int, now_s: int, is_let_go: bool
) -> None:
    """The tool ended interrupted machines itself, and so paid for hours that are free when AWS ends them."""
    noticed = ran_s * SECOND_US
    row = RentalRow(id="rental_1", created_us=0, market=market, pricing=pricing, started_us=1)
    gone = Worker(
        rental="rental_1", bootstrap_sha256="", state="gone", seen_us=noticed, notice_us=noticed + 120 * SECOND_US
    )
    patience = (120 * SECOND_US, 60 * SECOND_US)
    assert (silence(row, gone, noticed + now_s * SECOND_US, 0, patience) is not None) == is_let_go


async def test_azure_docs_791_an_evicted_machine_is_paid_until_its_end_and_nothing_is_taken_for_refunded(
    town: Any,
) -> None:
    of = replace(town.offer(), key=replace(town.offer().key, pricing="spot"))
    await town.list_offers(of)
    rental = await town.rental(of, purpose=(await town.batch(),), ran_s=100)
    async with town.database.transaction() as session:
        (await session.get_one(Worker, rental)).ready_us = (await session.get_one(RentalRow, rental)).started_us
    await end(town, of, rental, reason="preempted")
    assert await expenses(town, rental) == {"Lost:Preempted:Town": 100 * MILLI}
    assert await spent(town) == 100 * MILLI


async def test_rackerlabs_15_what_is_billed_before_the_worker_is_ready_is_called_startup(town: Any) -> None:
    of = town.offer()
    await town.list_offers(of)
    rental = await town.rental(of, purpose=(await town.batch(),), ran_s=100)
    async with town.database.transaction() as session:
        row = await session.get_one(RentalRow, rental)
        assert row.started_us is not None
        (await session.get_one(Worker, rental)).ready_us = row.started_us + 70 * SECOND_US
    await end(town, of, rental)
    assert (await expenses(town, rental))["Startup:Town"] == 70 * MILLI
