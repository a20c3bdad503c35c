"""Providers whose prices are read: whose credentials they are asked with, and what is said of those that are not asked."""

from __future__ import annotations

from contextlib import AsyncExitStack
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import pytest
from pydantic import SecretStr

from broker.control.poll import Poller
from broker.market_settings import ClusterSettings, ProviderSettings
from broker.price_ages import max_ages_s
from broker.provider_set import Providers, open_providers
from broker.services import Services
from jobs.clock import db_now
from markets import price_book
from markets.price_book import Listed
from tests.broker.control.conftest import Town
from tests.markets.sources import case_kubernetes, case_lambda, case_shadeform
from tests.markets.sources.gathered import CASES
from tests.markets.sources.loopback import Loopback

CARD = """
format = 1
market = "example"
operator = "Example Inc."
base_url = "https://api.example.com/v1"
currency = "USD"
source = "https://example.com/pricing"
observed_on = 2026-11-20
[[models]]
id = "llama-3.3-70b"
input = 0.59
output = 0.79
"""


def with_providers(services: Services, stack: AsyncExitStack, **providers: ProviderSettings) -> Services:
    settings = services.settings.model_copy(update={"providers": providers})
    opened = open_providers(settings, services.credentials, stack=stack)
    return replace(services, settings=settings, providers=opened, markets={})


async def listed(services: Services) -> list[Listed]:
    async with services.database.transaction() as session:
        ages = max_ages_s(services)
        return await price_book.offers(session, now_us=await db_now(session), max_age_s=ages, default_max_age_s=600)


async def ask(services: Services) -> set[str]:
    """Poll all that are to be asked; the names of those that answered."""
    await Poller(services).step()
    async with services.database.transaction() as session:
        return {poll.market for poll in await price_book.polls(session) if poll.ok_us and not poll.error}


async def test_a_projects_own_credentials_bring_its_markets_offers(town: Town) -> None:
    async with Loopback(case_lambda.CASE.answers) as api, AsyncExitStack() as stack:
        services = with_providers(town.services, stack, **{"lambda": ProviderSettings(url=api.url)})
        await Poller(services).step()
        assert (api.requests, await listed(services)) == ([], [])
        await services.credentials.keep("default", "lambda", {"api_key": SecretStr("of the project")}, by="ada")
        await Poller(services).step()
        assert len(await listed(services)) == case_lambda.CASE.offers
        await services.credentials.forget("default", "lambda")
        await Poller(services).step()
    assert len(api.requests) == 1, "asked again with credentials that are forgotten"


async def test_the_houses_credentials_serve_where_no_project_has_any(town: Town) -> None:
    house = ProviderSettings(credentials={"api_key": SecretStr("of the house")})
    async with Loopback(case_lambda.CASE.answers) as api, AsyncExitStack() as stack:
        services = with_providers(town.services, stack, **{"lambda": house.model_copy(update={"url": api.url})})
        await Poller(services).step()
    assert len(await listed(services)) == case_lambda.CASE.offers


async def test_a_provider_that_is_not_asked_says_why_and_how_to_mend_it(town: Town) -> None:
    async with AsyncExitStack() as stack:
        found = {each.provider.name: each for each in await with_providers(town.services, stack).providers.standings()}
    assert not found["lambda"].credentials and not found["lambda"].is_asked
    assert "api_key" in str(found["lambda"].reason) and "broker credentials set lambda" in str(found["lambda"].reason)


async def test_a_market_that_lacks_more_than_a_name_in_the_settings_says_that(town: Town) -> None:
    """An unconfigured cluster was said to be public and to need a name in `sources`; added there, it lacked its address."""
    async with AsyncExitStack() as stack:
        found = {each.provider.name: each for each in await with_providers(town.services, stack).providers.standings()}
    assert "providers.kubernetes.url" in str(found["kubernetes"].reason)
    assert {each.provider.is_card for each in found.values() if each.provider.name in ("groq", "portkey")} == {True}


async def test_a_provider_that_nobody_knows_is_refused_at_the_start(town: Town) -> None:
    async with AsyncExitStack() as stack:
        with pytest.raises(ValueError, match=r"no provider is called lamda; there are .*lambda"):
            with_providers(town.services, stack, lamda=ProviderSettings())


async def test_no_provider_is_asked_without_being_told_to(town: Town) -> None:
    """A broker that nobody has configured speaks to nobody on the internet."""
    async with AsyncExitStack() as stack:
        services = with_providers(town.services, stack)
        assert isinstance(services.providers, Providers)
        assert await services.providers.wanted() == {}


async def test_a_token_endpoint_of_ones_own_needs_a_card_and_nothing_else(town: Town, tmp_path: Path) -> None:
    card = tmp_path / "mine.toml"
    card.write_text(CARD.replace('market = "example"', 'market = "mine"'))
    async with AsyncExitStack() as stack:
        services = with_providers(town.services, stack, mine=ProviderSettings(card=card))
        assert await ask(services) == {"mine"}
        (first, *_) = await listed(services)
    assert first.offer.per_million is not None and first.excluded is None, "a card is not stale after three polls"


async def test_a_shipped_card_is_followed_when_the_settings_name_it(town: Town) -> None:
    settings = town.services.settings.model_copy(update={"sources": ("groq", "litellm")})
    async with AsyncExitStack() as stack:
        opened = open_providers(settings, town.services.credentials, stack=stack)
        services = replace(town.services, settings=settings, providers=opened, markets={})
        assert await ask(services) == {"groq"}
        async with services.database.transaction() as session:
            errors = {poll.market: poll.error for poll in await price_book.polls(session)}
        reasons = {each.provider.name: each.reason for each in await opened.standings()}
    assert errors == {"groq": None}, "a template has nothing to ask for"
    assert reasons["groq"] is None and "template without prices" in (reasons["litellm"] or "")
    assert "a price card of it is shipped" in (reasons["together"] or "")


async def test_an_aggregator_leaves_machines_of_markets_that_are_asked_themselves(town: Town) -> None:
    key = {"api_key": SecretStr("of the house")}
    async with Loopback({**case_shadeform.CASE.answers, **case_lambda.CASE.answers}) as api, AsyncExitStack() as stack:
        aggregator = ProviderSettings(url=f"{api.url}/v1", credentials=key)
        services = with_providers(
            town.services, stack, shadeform=aggregator, **{"lambda": ProviderSettings(url=api.url)}
        )
        await ask(services)
        resold = {each.offer.key.sku: each.offer.quarantined for each in await listed(services)}
        assert resold["lambdalabs/A100_80G/gpu_1x_a100_80g"] is None, "lambda is not asked: nobody gave its key"
        await services.credentials.keep("default", "lambda", key, by="ada")
        await ask(services)
        resold = {each.offer.key.sku: each.offer.quarantined for each in await listed(services)}
    assert "the market 'lambda'" in (resold["lambdalabs/A100_80G/gpu_1x_a100_80g"] or "")


async def test_what_a_provider_needs_beside_credentials_is_named(town: Town) -> None:
    key = {"api_key": SecretStr("of the house")}
    async with AsyncExitStack() as stack:
        services = with_providers(
            town.services, stack, salad=ProviderSettings(credentials=key), kubernetes=ProviderSettings(url="https://c")
        )
        reasons = {each.provider.name: each.reason for each in await services.providers.standings()}
    assert "providers.salad.organization" in str(reasons["salad"])
    assert "providers.kubernetes.cluster.rates" in str(reasons["kubernetes"])


async def test_a_cluster_is_asked_at_its_address_with_its_rates(town: Town) -> None:
    async with Loopback(case_kubernetes.CASE.answers) as api, AsyncExitStack() as stack:
        cluster = ClusterSettings(rates={"h100-sxm": Decimal("2.39")}, places={"US-EAST-04": "US"})
        services = with_providers(town.services, stack, kubernetes=ProviderSettings(url=api.url, cluster=cluster))
        assert await ask(services) == {"kubernetes"}
        found = {each.offer.key.sku: each.offer for each in await listed(services)}
    assert found["gd-8xh100ib-i128/8of8"].price == Decimal("2.39") * 8


async def test_every_adapter_is_registered_under_its_own_name(town: Town) -> None:
    async with AsyncExitStack() as stack:
        services = with_providers(town.services, stack)
        assert {name: source.name for name, source in services.providers.sources.items()} == {
            name: name for name in services.providers.sources
        }
        assert {case.name for case in CASES} <= set(services.providers.sources)
