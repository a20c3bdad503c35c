"""OpenRouter: what tokens cost, model by model, at a router in front of many providers. Unverified against the live service.

Source: OpenRouter documentation, "Models API" (2026): `GET /api/v1/models`, without log-in. Prices are texts in dollars a token:
of a prompt's, a completion's, a cached prompt's. "-1" is "it depends" and "0" a free variant with a quota: neither is a price.
A price per request, or another one by the hour or the day, is not what a plan counts with; where long prompts cost more
(`overrides`, its Python SDK), the model is taken up to that length. Where a prompt goes, and what is kept
of it, depends on the provider that it is routed to: no country, no data policy.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal

from markets.offer import Offer
from markets.provider.api import ProviderApi, Reach
from markets.provider.listing import distinct
from markets.provider.shape import Shape, rows
from markets.tokens.listing import TokenSaid, token_offer

MARKET = "openrouter"
REACH = Reach("https://openrouter.ai")
ENDPOINT = "https://openrouter.ai/api/v1"
SOURCE = "OpenRouter /api/v1/models"
MILLION = Decimal(1_000_000)


class OpenRouterSource:
    name = MARKET

    def __init__(self, reach: Reach = REACH) -> None:
        self._api = ProviderApi(MARKET, reach)

    async def offers(self) -> list[Offer]:
        at = datetime.now(UTC)
        return openrouter_offers(await self._api.get("/api/v1/models"), at)

    async def close(self) -> None:
        await self._api.close()


def openrouter_offers(answer: Shape, at: datetime) -> list[Offer]:
    """One offer for each model that reads and writes text."""

    def of(model: Shape) -> Iterator[Offer]:
        if not _writes_text(model):
            return
        pricing, name = model["pricing"], model["id"].text()
        provider = model.get("top_provider")
        most = provider.get("max_completion_tokens") if provider else None
        yield token_offer(
            TokenSaid(
                market=MARKET,
                model=name,
                base_url=ENDPOINT,
                input=_per_million(pricing, "prompt"),
                output=_per_million(pricing, "completion"),
                cached=_per_million(pricing, "input_cache_read"),
                context_tokens=_context(model, pricing),
                max_output_tokens=most.whole() if most else None,
                source=SOURCE,
                raw={"model": name, "pricing": pricing.value},
                not_for_sale=_problem(pricing),
            ),
            at,
        )

    return distinct(rows(answer["data"].each(), of))


def _per_million(pricing: Shape, name: str) -> Decimal | None:
    found = pricing.get(name)
    return None if found is None else found.number() * MILLION


def _overrides(pricing: Shape) -> list[Shape]:
    """Other prices under conditions; the others are those of every day."""
    found = pricing.get("overrides")
    return found.each() if found else []


def _context(model: Shape, pricing: Shape) -> int | None:
    """How long a prompt may be at the price that is listed: above `min_prompt_tokens` it is another."""
    lengths = [model.get("context_length"), *(each.get("min_prompt_tokens") for each in _overrides(pricing))]
    return min((each.whole() for each in lengths if each), default=None)


def _problem(pricing: Shape) -> str | None:
    request = pricing.get("request")
    if request and request.number() > 0:
        return f"each request costs {request.number()} USD beside its tokens; the planner cannot count that"
    if any(each.get("min_prompt_tokens") is None for each in _overrides(pricing)):
        return "its price is another at some hours or on some days; the planner cannot count that"
    return None


def _writes_text(model: Shape) -> bool:
    """Of a catalogue that also lists painters and embedders; one that does not say is taken to write."""
    architecture = model.get("architecture")
    outputs = architecture.get("output_modalities") if architecture else None
    return outputs is None or any(each.value == "text" for each in outputs.each())
