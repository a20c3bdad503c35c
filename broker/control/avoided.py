"""What a placement avoided: the on-demand and the API price of the moment of decision, and what the same would have cost.

Both are kept with the intent, for prices move and a saving against today's price is no saving.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from broker.token_buying import is_bought
from jobs.tables import Part
from ledger.accrual import read_meter
from ledger.money import cost_of_seconds, div_half_even, to_nano
from ledger.savings import avoid
from ledger.token_meter import read_tokens
from ledger.unit_costs import Tokens, tokens_of
from markets.offer import Offer
from markets.tables import RentalRow

ACTOR = "broker.accrual"
_MILLION = 1_000_000


def baselines(chosen: Offer, offers: Iterable[Offer], model: str) -> dict[str, Any]:
    """What is kept of the alternatives: `on_demand_nano_hour` of the same machine at the same market, else the cheapest one
    with as many of the same accelerator anywhere (`on_demand_elsewhere`: it is no list price of what was rented);
    `api_nano_per_million` [input, output, cached input] of the cheapest endpoint that sells the model (cached input costs as
    much as fresh where it has no price of its own). Offers without a price in USD, or quarantined, say nothing."""
    on_demand, elsewhere, api = [], [], []
    for each in offers:
        if each.quarantined or each.currency != "USD":
            continue
        if each.pricing == "on_demand" and each.price:
            if (each.market, each.key.region, each.key.sku) == (chosen.market, chosen.key.region, chosen.key.sku):
                on_demand.append(to_nano(each.price))
            elif (each.accelerator.name, each.accelerator.count) == (chosen.accelerator.name, chosen.accelerator.count):
                elsewhere.append(to_nano(each.price))
        elif each.pricing == "token" and each.per_million and each.key.sku == model:
            price = each.per_million
            cached = price.input if price.cached is None else price.cached
            api.append([to_nano(price.input), to_nano(price.output), to_nano(cached)])
    found: dict[str, Any] = {}
    if on_demand or elsewhere:
        found["on_demand_nano_hour"] = min(on_demand or elsewhere)
        if not on_demand:
            found["on_demand_elsewhere"] = True
    if api:
        found["api_nano_per_million"] = min(api, key=lambda price: (price[0] + price[1], price))
    return found


def api_nano(tokens: Tokens, price: Sequence[int]) -> int:
    """Nano-USD of these tokens at [input, output, cached input] for a million; intents of before there was a third price take
    the first. Each token is charged in one class (Langfuse #5568, #10592 charged cached input twice, #2112 as if it were fresh),
    and what fills a cache is fresh input (#14249 had it free). Pure.

    >>> api_nano(Tokens(fresh_input=6, cached_input=4, output=5, reasoning=0), [1_000_000, 2_000_000, 500_000])
    18
    """
    input_, output, cached = price if len(price) == 3 else (*price, price[0])
    return div_half_even(
        tokens.fresh_input * input_ + tokens.cached_input * cached + (tokens.output + tokens.reasoning) * output,
        _MILLION,
    )


async def book_avoided(session: AsyncSession, row: RentalRow, *, besides_nano: int = 0, now_us: int) -> None:
    """Book both savings of a rental whose end is booked; nothing for what was not known when it was chosen.

    `besides_nano` is what it cost besides its time: the machine on demand would have cost that too, an API would not.
    """
    reading = await read_meter(session, row.id)
    nano = (await read_tokens(session, row.id)).nano if is_bought(row) else reading.nano
    found: dict[str, int] = {}
    if (price := row.purpose.get("on_demand_nano_hour")) is not None:
        found["OnDemand"] = cost_of_seconds(price, reading.seconds) - nano
    if (api := row.purpose.get("api_nano_per_million")) is not None:
        query = select(
            func.coalesce(func.sum(col(Part.prompt_tokens)), 0),
            func.coalesce(func.sum(col(Part.cached_tokens)), 0),
            func.coalesce(func.sum(col(Part.completion_tokens)), 0),
            func.coalesce(func.sum(col(Part.reasoning_tokens)), 0),
        ).where(col(Part.placement_id) == row.id, col(Part.counted).is_(True))
        prompt, cached, completion, reasoning = (await session.execute(query)).one()
        tokens = tokens_of(prompt=int(prompt), cached=int(cached), completion=int(completion), reasoning=int(reasoning))
        found["Api"] = api_nano(tokens, api) - nano - besides_nano
    for against, nano in found.items():
        await avoid(
            session,
            against="Api" if against == "Api" else "OnDemand",
            nano=nano,
            project=row.project,
            rental=row.id,
            occurred_at_us=now_us,
            actor=ACTOR,
        )
