"""How often each market is asked, and how old its prices may be."""

from __future__ import annotations

from collections.abc import Mapping

from broker.services import Services
from markets.cadence import oldest_s
from markets.directory import DIRECTORY
from markets.own_account import provider_of


def every_s(services: Services, market: str) -> float:
    """The interval of a market: the operator's, else the house's for what is rented at, else the market's own. Seconds."""
    market = provider_of(market)
    provider = services.settings.providers.get(market)
    if provider is not None and provider.poll_s is not None:
        return provider.poll_s
    if market in services.markets or market in services.accounts.openers:
        return services.settings.control.poll_s
    read = next((each for each in services.providers.known if each.name == market), None)
    if read is not None:
        return read.cadence_s
    known = DIRECTORY.get(market)
    return known.every_s if known else services.settings.control.poll_s


def max_ages_s(services: Services) -> Mapping[str, int]:
    """Seconds after which a price of a market is too old to plan with: three of its polls, or what the operator says."""
    names = {
        *services.markets,
        *services.accounts.openers,
        *services.providers.sources,
        *services.settings.providers,
        *DIRECTORY,
    }
    return {name: _max_age_s(services, name) for name in names}


def default_max_age_s(services: Services) -> int:
    """The same for a market that nothing is known of."""
    return oldest_s(services.settings.control.poll_s)


def _max_age_s(services: Services, market: str) -> int:
    provider = services.settings.providers.get(market)
    if provider is not None and provider.max_age_s is not None:
        return provider.max_age_s
    read = next((each for each in services.providers.known if each.name == market), None)
    if read is not None and read.max_age_s is not None:
        return read.max_age_s
    return oldest_s(every_s(services, market))
