"""A batch's unit costs: its cost beside its tokens by class, its useful responses, and how busy its machines were."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from broker.costs import accrued_by_rental, batch_costs
from jobs.tables import Batch, Part
from ledger import accounts
from ledger.accrual import read_meter
from ledger.money import div_half_even
from ledger.tables import Posting
from ledger.unit_costs import Tokens, UnitCosts, tokens_of, unit_costs


@dataclass(frozen=True, slots=True)
class Economics:
    """`billed_ms` is the batch's share, by cost, of the time that its machines were billed; `busy_ms` what engines worked on
    its answers, `retried_ms` on answers that were not needed. `saved_nano` is what reuse spared it."""

    nano: int
    tokens: Tokens
    requests: int
    useful: int
    busy_ms: int
    retried_ms: int
    billed_ms: int
    saved_nano: int
    units: UnitCosts


async def economics_of(session: AsyncSession, batch: Batch) -> Economics:
    """So far; a batch that nothing was spent on has zeros."""
    cost = (await batch_costs(session, [batch.id]))[batch.id]
    busy_ms = retried_ms = prompt = completion = cached = thought = 0
    query = select(
        col(Part.counters),
        col(Part.counted),
        col(Part.prompt_tokens),
        col(Part.completion_tokens),
        col(Part.cached_tokens),
        col(Part.reasoning_tokens),
    ).where(col(Part.batch_id) == batch.id)
    for counters, counted, asked, answered, known, reasoned in await session.execute(query):
        worked = int(counters.get("busy_ms", 0))
        busy_ms, retried_ms = (busy_ms + worked, retried_ms) if counted else (busy_ms, retried_ms + worked)
        if counted:
            prompt, completion, cached = prompt + asked, completion + answered, cached + known
            thought += reasoned
    tokens = tokens_of(prompt=prompt, cached=cached, completion=completion, reasoning=thought)
    # answers that were reused were delivered, and are useful; lines that are no requests were answered by the broker itself
    return Economics(
        nano=cost.nano,
        tokens=tokens,
        requests=batch.completed + batch.failed,
        useful=batch.completed,
        busy_ms=busy_ms,
        retried_ms=retried_ms,
        billed_ms=await _billed_ms(session, {rental: nano for rental, (_, nano) in cost.by_rental.items()}),
        saved_nano=batch.saved_nano,
        units=unit_costs(
            max(0, cost.nano), tokens, requests=batch.completed + batch.failed, useful=batch.completed, busy_ms=busy_ms
        ),
    )


async def _billed_ms(session: AsyncSession, shares: dict[str, int]) -> int:
    whole = await accrued_by_rental(session, sorted(shares))
    billed = 0
    for rental, nano in shares.items():
        if whole.get(rental, 0) > 0 and nano > 0:
            billed += div_half_even((await read_meter(session, rental)).seconds * 1000 * nano, whole[rental])
    return billed


async def avoided_by(session: AsyncSession, project: str) -> dict[str, int]:
    """Nano-USD that the project's placements avoided, by alternative; alternatives are never added up."""
    names = {accounts.avoided("OnDemand", project): "on_demand", accounts.avoided("Api", project): "api"}
    query = select(col(Posting.account), func.sum(col(Posting.nano))).where(col(Posting.account).in_(names))
    return {names[account]: int(nano) for account, nano in await session.execute(query.group_by(col(Posting.account)))}
