"""Prices in euros are counted by the ledger's rate of the day; without a current one they are listed and not chosen."""

from __future__ import annotations

from contextlib import AsyncExitStack
from datetime import date, timedelta
from decimal import Decimal

from pydantic import SecretStr

from broker.control.poll import Poller
from broker.market_settings import FxSettings, ProviderSettings
from broker.rates_of_day import aged, fx_rates
from jobs.clock import db_now
from ledger import rates
from ledger.rate_file import day_us
from ledger.rates import DatedRate
from markets.hourly import FxRate
from markets.instants import moment
from tests.broker.control.conftest import Town
from tests.broker.control.test_providers import listed, with_providers
from tests.markets.sources import case_scaleway
from tests.markets.sources.loopback import Loopback


async def say(town: Town, rate: str, days_ago: int) -> None:
    async with town.services.database.transaction() as session:
        day = moment(await db_now(session)).date() - timedelta(days=days_ago)
        await rates.record(session, [DatedRate("EUR", "USD", day_us(day), "ECB", Decimal(rate))])


async def test_euros_are_counted_by_the_newest_rate_of_the_ledger_from_the_next_poll_on(town: Town) -> None:
    async with Loopback(case_scaleway.CASE.answers) as api, AsyncExitStack() as stack:
        login = {name: SecretStr("of the house") for name in ("secret_key",)}
        own = ProviderSettings(url=api.url, credentials=login, regions=("fr-par-1", "pl-waw-2"))
        services = with_providers(town.services, stack, scaleway=own)
        await Poller(services).step()
        unknown = await listed(services)
        assert unknown and all("no rate of EUR to USD is known" in str(each.excluded) for each in unknown)
        assert all(each.offer.price is None for each in unknown), "never one to one"

        await say(town, "1.05", days_ago=30)
        await Poller(services).step()
        assert all("30 days ago; 7 are the most allowed" in str(each.excluded) for each in await listed(services))

        await say(town, "1.10", days_ago=1)
        await Poller(services).step()
        first = {str(each.offer.key): each.offer for each in await listed(services)}
        assert all("1 EUR = 1.10 USD" in offer.raw["fx"] for offer in first.values())

        await say(town, "1.21", days_ago=0)
        await Poller(services).step()
        for each in await listed(services):
            before = first[str(each.offer.key)].price
            assert before is not None and each.offer.price is not None
            assert abs(each.offer.price - before * Decimal("1.1")) < Decimal("1e-9")


async def test_the_newer_of_a_setting_and_the_ledger_counts(town: Town) -> None:
    given = FxSettings(usd=Decimal("1.01"), dated=date(2026, 11, 20), source="by hand")
    settings = town.services.settings.model_copy(update={"fx_rates": {"EUR": given}})
    now_us = day_us(date(2026, 11, 24))
    async with town.services.database.transaction() as session:
        assert (await fx_rates(session, settings, now_us))["EUR"].source == "by hand"
        for day, rate in ((19, "1.02"), (21, "1.03"), (28, "9")):
            at_us = day_us(date(2026, 11, day))
            await rates.record(session, [DatedRate("EUR", "USD", at_us, "ECB", Decimal(rate))])
        found = (await fx_rates(session, settings, now_us))["EUR"]
    assert (found.usd, found.dated.day) == (Decimal("1.03"), 21), "nothing is counted by a rate that is to come"


def test_a_rate_is_too_old_after_its_days_and_says_how_to_mend_it() -> None:
    rate = FxRate("EUR", Decimal("1.1"), date(2026, 11, 1), "ECB")
    assert aged(rate, date(2026, 11, 8), 7).too_old is None
    assert "broker ledger rates add" in str(aged(rate, date(2026, 11, 9), 7).too_old)
