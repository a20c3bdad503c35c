"""OpenRouter: what tokens cost, model by model, at a router in front of many providers. Unverified against the live service.

Source: OpenRouter documentation, "Models API" (2026): `GET /api/v1/models`, without log-in. Prices are texts in dollars a token:
of a prompt's, a completion's, a cached prompt's. "-1" is "it depends" and "0" a free variant with a quota: neither is a price.
A price per request, or another one above some length, is not what a plan counts with. Where a prompt goes, and what is kept
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
        context, provider = model.get("context_length"), model.get("top_provider")
        most = provider.get("max_completion_tokens") if provider else None
        yield token_offer(
            TokenSaid(
                market=MARKET,
                model=name,
                base_url=ENDPOINT,
                input=_per_million(pricing, "prompt"),
                output=_per_million(pricing, "completion"),
                cached=_per_million(pricing, "input_cache_read"),
                context_tokens=context.whole() if context else None,
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


def _problem(pricing: Shape) -> str | None:
    request = pricing.get("request")
    if request and request.number() > 0:
        return f"each request costs {request.number()} USD beside its tokens; the planner cannot count that"
    return None


def _writes_text(model: Shape) -> bool:
    """Of a catalogue that also lists painters and embedders; one that does not say is taken to write."""
    architecture = model.get("architecture")
    outputs = architecture.get("output_modalities") if architecture else None
    return outputs is None or any(each.value == "text" for each in outputs.each())
