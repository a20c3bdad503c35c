"""Other ledgers' incidents that concern what is set aside and what is avoided, each as a test that would have caught it."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import select
from sqlmodel import col

from broker.budget_changes import Wanted, put
from broker.budget_tables import Team, TeamOfProject
from broker.budgets import Placement, admit
from broker.control.avoided import api_nano, baselines
from broker.control.plan import hold_nano
from broker.costs import batch_costs
from broker.settings import ControlSettings
from jobs.clock import db_now
from jobs.tables import Part, Shard
from ledger.accrual import billed_seconds
from ledger.budgets import grant
from ledger.errors import HoldExceeded, LimitExceeded
from ledger.holds import open_hold
from ledger.money import cost_of_seconds, to_nano
from ledger.unit_costs import Tokens, tokens_of, unit_costs
from markets.offer import Offer
from markets.tables import RentalRow
from markets.tokens.listing import TokenSaid, token_offer
from solver.types import Start
from tests.broker.control.conftest import offer
from tests.broker.control.test_settled_costs import end
from tests.broker.control.test_token_market import AT

DOLLAR = 10**9
MILLION = 1_000_000
COUNT = st.integers(0, 10**9)


async def first_hold(town: Any, project: str, nano: int) -> None:
    """The first thing that anybody ever asks for a project: it has no entries, no counters, no batch."""
    async with town.database.transaction() as session:
        now_us = await db_now(session)
        scopes = await admit(session, Placement(project, (), nano), now_us=now_us)
        await open_hold(session, hold_id=f"first-{project}", nano=nano, project=project, batch=None, rental=None,
                        offer_key=None, occurred_at_us=now_us, actor="planner", scopes=scopes)  # fmt: skip


@pytest.mark.parametrize("scope", ["org:acme", "team:ml", "project:unseen"])
async def test_litellm_40095_the_first_request_of_a_project_that_nobody_saw_before_meets_the_budget(
    town: Any, scope: str
) -> None:
    """The first requests of an unknown user passed by the default budget, for its counters were not there yet."""
    async with town.database.transaction() as session:
        session.add(Team(name="ml", org="acme", created_us=1))
        await session.flush()
        session.add_all([TeamOfProject(project="unseen", team="ml"), TeamOfProject(project="another", team="ml")])
        wanted = Wanted(limit_nano=DOLLAR, per_hour_nano=None, mode="enforce", window="total", emails=())
        owner = "unseen" if scope.startswith("project:") else None
        await put(
            session, scope=scope, unit="USD", project=owner, wanted=wanted, by="fin", now_us=await db_now(session)
        )
    with pytest.raises(LimitExceeded, match=scope):
        await first_hold(town, "unseen", DOLLAR + 1)
    await first_hold(town, "unseen", DOLLAR)
    if owner is None:  # and what the first one holds, the next newcomer below the same node does not have
        with pytest.raises(LimitExceeded, match=scope):
            await first_hold(town, "another", 1)


async def test_litellm_40095_the_first_hold_of_a_granted_project_is_within_its_grant(town: Any) -> None:
    async with town.database.transaction() as session:
        await grant(
            session, grant_id="g", project="unseen", nano=DOLLAR, occurred_at_us=await db_now(session), actor="fin"
        )
    with pytest.raises(HoldExceeded):
        await first_hold(town, "unseen", DOLLAR + 1)


@given(
    price=st.integers(1, 10**12), lower=st.integers(0, 100), granularity_s=st.sampled_from([1, 60, 300, 3_600]),
    minimum_s=st.integers(0, 7_200), expected_us=st.integers(1, 10**12), part=st.integers(0, 100),
)  # fmt: skip
def test_litellm_40002_a_hold_covers_the_dearest_that_may_be_charged_until_the_expected_end(
    price: int, lower: int, granularity_s: int, minimum_s: int, expected_us: int, part: int
) -> None:
    """A reservation was priced at the cheaper of two tiers: 0.60 spent under a cap of 0.45. Ours is priced at the intent's
    ceiling, above which a market answers PriceMoved; whatever is below it, whenever the machine ends, the hold is enough."""
    wanted = replace(offer(price=str(Decimal(price).scaleb(-9))), granularity_s=granularity_s, minimum_s=minimum_s)
    start = Start(offer_key=str(wanted.key), count=1, project="p", model="m", precision="bf16", from_us=0,
                  until_us=expected_us, cost_nano=0)  # fmt: skip
    control = ControlSettings()
    held = hold_nano(wanted, start, control, 0)
    ended_us = expected_us * part // 100 + control.unseen_s * 1_000_000  # it goes on unseen before it is given back
    charged = price * (100 - lower) // 100
    assert cost_of_seconds(charged, billed_seconds(0, ended_us, granularity_s, minimum_s, True)) <= held


@given(prompt=COUNT, cached=COUNT, completion=COUNT, reasoning=COUNT)
def test_langfuse_10592_and_5568_no_token_is_in_two_classes(
    prompt: int, cached: int, completion: int, reasoning: int
) -> None:
    """Cached input was counted as input, too. The classes sum to what the engine said, whatever it says of the parts."""
    found = tokens_of(prompt=prompt, cached=cached, completion=completion, reasoning=reasoning)
    assert found.total == prompt + completion
    assert min(found.fresh_input, found.cached_input, found.output, found.reasoning) >= 0
    told = unit_costs(7 * DOLLAR, found, requests=1, useful=1, busy_ms=0).per_million_total
    assert (told is None) == (prompt + completion == 0)


@given(prompt=COUNT, cached=COUNT, completion=COUNT, price=st.tuples(*[st.integers(1, 10**11)] * 3))
def test_langfuse_2112_and_14249_a_cache_hit_costs_its_own_price_and_filling_the_cache_costs_that_of_input(
    prompt: int, cached: int, completion: int, price: tuple[int, int, int]
) -> None:
    """Hits were charged as if they were fresh, and writes were free."""
    fresh, written, hit = price
    tokens = tokens_of(prompt=prompt, cached=cached, completion=completion)
    whole = (prompt - min(cached, prompt)) * fresh + min(cached, prompt) * hit + completion * written
    assert abs(api_nano(tokens, price) * MILLION - whole) <= MILLION // 2
    filling = Tokens(fresh_input=prompt, cached_input=0, output=0, reasoning=0)
    assert abs(api_nano(filling, price) * MILLION - prompt * fresh) <= MILLION // 2


def test_langfuse_4590_an_endpoint_without_a_cached_price_charges_hits_as_input_and_never_nothing() -> None:
    def sold(**more: Any) -> Offer:
        said = TokenSaid(market="api", model="tiny", base_url="https://api.example/v1", input=Decimal(2), output=Decimal(8),
                         source="list", raw={}, **more)  # fmt: skip
        return token_offer(said, AT)

    chosen = offer()
    for more, hit in (({}, 2), ({"cached": Decimal("0.5")}, Decimal("0.5"))):
        kept = baselines(chosen, [sold(**more)], sold().key.sku)["api_nano_per_million"]
        assert kept == [to_nano(Decimal(2)), to_nano(Decimal(8)), to_nano(Decimal(hit))]
    hits = Tokens(fresh_input=0, cached_input=MILLION, output=0, reasoning=0)
    assert api_nano(hits, [2 * DOLLAR, 8 * DOLLAR]) == 2 * DOLLAR, "an intent of before cached prices were kept"


async def test_litellm_37365_what_only_failed_was_paid_for_and_is_its_batchs_cost(town: Any) -> None:
    """Failed requests were billed by the provider and logged as 0."""
    of = town.offer()
    await town.list_offers(of)
    failed, answered = await town.batch(), await town.batch()
    rental = await town.rental(of, purpose=(failed, answered), ran_s=100)
    async with town.database.transaction() as session:
        started_us = (await session.get_one(RentalRow, rental)).started_us
        for batch, outcome in ((failed, {"failed": 4}), (answered, {"completed": 4})):
            shard = await session.scalar(select(col(Shard.id)).where(col(Shard.batch_id) == batch))
            session.add(
                Part(shard_id=shard, epoch=1, seq=1, batch_id=batch, placement_id=rental, key="k", size=1, sha256="0",
                     lines=[[0, 4]], usage=b"[]", counters={}, outcome="committed", counted=True, committed_us=started_us,
                     prompt_tokens=0 if "failed" in outcome else 4, **outcome)
            )  # fmt: skip
    await end(town, of, rental)
    async with town.database.transaction() as session:
        costs = await batch_costs(session, [failed, answered])
    assert (costs[failed].nano, costs[answered].nano) == (50_000_000, 50_000_000)
