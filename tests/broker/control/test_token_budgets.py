"""What budgets leave for token endpoints: one batch that is too much stops no other, and nothing is bought without a hold."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import update
from sqlmodel import col

from broker.compliance.pinning import store_policy
from broker.control.accrue import Accruer
from broker.control.place import await_worker
from broker.control.plan import Planner
from broker.market_settings import ProviderSettings, TokenBuying
from broker.tables import Worker
from broker.worker_pool import candidates
from jobs.clock import db_now
from jobs.tables import Batch, Shard
from ledger.holds import hold
from markets import rentals
from markets.market import Rental
from markets.offer import Accelerator, Evidence, Offer, OfferKey, TokenEndpoint, TokenPrice
from markets.tables import RentalRow
from solver.residency.types import Policy, PolicyRule
from tests.broker.control.test_budget_reach import DOLLAR, budget

WORST = 1_012_500_000  # of one batch: 10,000 tokens in × 1.25 at $1, 100,000 out at $10 a million


def endpoint(given: str = "1", written: str = "10") -> Offer:
    now = datetime.now(UTC)
    return Offer(
        key=OfferKey("near", None, None, "large", "tokens", 0, "token"), launch="token_api",
        accelerator=Accelerator(kind="none", name="tokens"), currency="USD", price=None, observed_at=now, source="card",
        raw_sha256="0" * 64, per_million=TokenPrice(Decimal(given), Decimal(written), None), country="DE", capacity=4,
        evidence=(Evidence("provider_api", "card", now, timedelta(days=1)),), location_tier="named_datacenter",
        endpoint=TokenEndpoint("large", "https://near.example/v1", "tiny", context_tokens=8192),
    )  # fmt: skip


async def buys(town: Any, **prices: str) -> Offer:
    """An endpoint that is bought from, with no machine beside it."""
    town.services.markets["near"] = town.services.markets["town"]
    terms = TokenBuying(models={"tiny": "large"}, tokens_per_minute=6_000_000, executors=4)
    near = ProviderSettings.model_validate({"credentials": {"api_key": "k"}, "buy": terms})
    object.__setattr__(town.services.settings, "providers", {"near": near})
    offer = endpoint(**prices)
    await town.list_offers(offer, market="near")
    return offer


async def batch(town: Any, times: int = 1, **more: Any) -> str:
    """A batch whose worst case is `times` WORST, and that may go to the endpoint."""
    made: str = await town.batch(lines=10, **more)
    async with town.database.transaction() as session:
        sizes = {"input_tokens": 10_000 * times, "output_tokens": 100_000 * times}
        await session.execute(update(Shard).where(col(Shard.batch_id) == made).values(sizes))
        german = PolicyRule(id="c", effect="allow", field="country", values=("DE",))
        policy = await store_policy(session, Policy(name="open", rules=(german,)), await db_now(session))
        await session.execute(update(Batch).where(col(Batch.id) == made).values(policy_hash=policy))
    return made


async def runs(town: Any, near: Offer) -> str:
    """The one intent's executor, at work."""
    [row] = await town.intents()
    now = datetime.now(UTC)
    seen = Rental(
        tag=row.id, offer_key=near.key, state="running", price=Decimal(1), currency="USD",
        started_at=now - timedelta(seconds=5), ended_at=None, seen_at=now,
    )  # fmt: skip
    async with town.database.transaction() as session:
        now_us = await db_now(session)
        await rentals.mark_creating(session, row.id, now_us=now_us)
        await await_worker(session, row.id, "token", now_us)
        await rentals.observe(session, seen, now_us=now_us)
        worker = await session.get_one(Worker, row.id)
        worker.state, worker.hello_us, worker.ready_us, worker.work_us = "ready", now_us, now_us, now_us
    return str(row.id)


async def leased(town: Any, rental: str) -> list[str]:
    """The batches that the executor may work on now."""
    async with town.database.transaction() as session:
        row = await session.get_one(RentalRow, rental)
        return [each async for each in await candidates(session, town.services, row, await db_now(session))]


async def held_nano(town: Any, rental: str) -> int:
    async with town.database.transaction() as session:
        found = await hold(session, rental)
        assert found is not None
        return found.nano


@pytest.mark.own_writes
async def test_a_batch_that_is_too_much_does_not_starve_one_that_is_covered(town: Any) -> None:
    await buys(town)
    first, second = await batch(town), await batch(town)
    await budget(town, "project:default", 1_600_000_000)
    await Planner(town.services).step()
    [intent] = await town.intents()
    [served] = intent.purpose["batches"]
    assert (served in (first, second), intent.purpose["hold_nano"]) == (True, WORST)
    waits = await town.waiting(second if served == first else first)
    assert waits is not None and waits.waiting_on == "budget"
    assert await town.waiting(served) is None


@pytest.mark.own_writes
async def test_a_newcomer_that_no_budget_covers_leaves_the_executor_to_those_it_serves(town: Any) -> None:
    near = await buys(town)
    first = await batch(town)
    await budget(town, "project:default", 1_600_000_000)
    await Planner(town.services).step()
    rental = await runs(town, near)
    second = await batch(town)
    await Planner(town.services).step()
    assert await leased(town, rental) == [first]  # the second's worst case is not set aside
    await Accruer(town.services).step()
    worker = await town.row(Worker, rental)
    assert (worker.drain_reason, await held_nano(town, rental)) == (None, WORST)
    assert (await leased(town, rental), await town.assigned(second)) == ([first], [])


@pytest.mark.own_writes
async def test_a_newcomer_is_leased_once_the_hold_covers_it(town: Any) -> None:
    near = await buys(town)
    first = await batch(town)
    await budget(town, "project:default", 3 * DOLLAR)
    await Planner(town.services).step()
    rental = await runs(town, near)
    second = await batch(town)
    await Planner(town.services).step()
    assert await leased(town, rental) == [first]
    await Accruer(town.services).step()
    assert sorted(await leased(town, rental)) == sorted([first, second])
    assert await held_nano(town, rental) == 2 * WORST
    await Accruer(town.services).step()
    assert await held_nano(town, rental) == 2 * WORST
