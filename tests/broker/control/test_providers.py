"""Providers whose prices are read: whose credentials they are asked with, and what is said of those that are not asked."""

from __future__ import annotations

from contextlib import AsyncExitStack
from dataclasses import replace

import pytest
from pydantic import SecretStr

from broker.control.poll import Poller
from broker.provider_set import Providers, open_providers
from broker.services import Services
from broker.settings import ProviderSettings
from jobs.clock import db_now
from markets import price_book
from markets.price_book import Listed
from tests.broker.control.conftest import Town
from tests.markets.sources import case_lambda
from tests.markets.sources.loopback import Loopback


def with_providers(services: Services, stack: AsyncExitStack, **providers: ProviderSettings) -> Services:
    settings = services.settings.model_copy(update={"providers": providers})
    opened = open_providers(settings, services.credentials, stack=stack)
    return replace(services, settings=settings, providers=opened, markets={})


async def listed(services: Services) -> list[Listed]:
    async with services.database.transaction() as session:
        return await price_book.offers(session, now_us=await db_now(session), max_age_s={}, default_max_age_s=600)


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
