"""A token endpoint on the wire: its offer, a batch that may go there, and the executor that answers its lines."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from sqlalchemy import update
from sqlmodel import col

from broker.compliance.pinning import store_policy
from broker.control.accrue import Accruer
from broker.market_settings import ProviderSettings, TokenBuying
from jobs.clock import db_now
from jobs.tables import Batch
from ledger.budgets import grant
from ledger.holds import open_hold
from markets.offer import Accelerator, Evidence, Offer, OfferKey, TokenEndpoint, TokenPrice
from solver.residency.types import Policy, PolicyRule
from tests.support.wire_agent import Agent, Rent, running_batch

# The endpoint's name of the model, and per million tokens what it asks.
THEIRS = "meta-llama/Llama-3.3-70B-Instruct-Turbo"
PRICE = TokenPrice(Decimal(1000), Decimal(10000), Decimal(500))


def endpoint(price: TokenPrice = PRICE) -> Offer:
    now = datetime.now(UTC)
    return Offer(
        key=OfferKey("near", None, None, THEIRS, "tokens", 0, "token"), launch="token_api",
        accelerator=Accelerator(kind="none", name="tokens"), currency="USD", price=Decimal("3.60"), observed_at=now,
        source="card", raw_sha256="0" * 64, per_million=price, country="DE",
        evidence=(Evidence("provider_api", "card", now, timedelta(days=1)),), location_tier="named_datacenter",
        endpoint=TokenEndpoint(THEIRS, "https://near.example/v1", "tiny", context_tokens=8192),
    )  # fmt: skip


async def buying(server: Any, rent: Rent, *, lines: int = 4, of: Offer | None = None) -> tuple[Agent, str]:
    """An executor that is ready, and a batch that it may buy for."""
    terms = TokenBuying(models={"tiny": THEIRS}, tokens_per_minute=6_000_000, executors=4)
    near = ProviderSettings.model_validate({"credentials": {"api_key": "k"}, "buy": terms})
    object.__setattr__(server.services.settings, "providers", {"near": near})
    server.services.markets["near"] = None  # a name to rent at
    of = of or endpoint()
    batch = await running_batch(server, of, lines=lines)
    async with server.services.database.transaction() as session:
        german = PolicyRule(id="c", effect="allow", field="country", values=("DE",))
        policy = await store_policy(session, Policy(name="open", rules=(german,)), await db_now(session))
        await session.execute(update(Batch).where(col(Batch.id) == batch).values(policy_hash=policy))
    agent = await rent(of, batches=(batch,))
    async with server.services.database.transaction() as session:
        now_us = await db_now(session)
        await grant(session, grant_id="g", project="default", nano=10**12, occurred_at_us=now_us, actor="test")
        await open_hold(
            session, hold_id=agent.rental, nano=10**10, project="default", batch=None, rental=agent.rental,
            offer_key=str(of.key), occurred_at_us=now_us, actor="test",
        )  # fmt: skip
    answer = await agent.hello()
    assert answer.status == 200, answer.raw
    assert (await agent.heartbeat()).status == 200
    return agent, batch


async def book(server: Any) -> None:
    """What the accrual loop does with what was answered."""
    await Accruer(server.services).step()
