"""The rates of exchange that prices are counted by: the ledger's and the settings', whichever is of the newer day."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from types import MappingProxyType

from sqlalchemy.ext.asyncio import AsyncSession

from broker.settings import Settings
from ledger import rates
from markets.hourly import FxRate


async def fx_rates(session: AsyncSession, settings: Settings, now_us: int) -> dict[str, FxRate]:
    """By currency. One that is older than `prices.fx_max_age_days` says so, and nothing is counted by it."""
    today = _day(now_us)
    found = {
        code: FxRate(code, given.usd, given.dated, given.source)
        for code, given in settings.fx_rates.items()
        if given.dated <= today
    }
    for code, kept in (await rates.newest(session, at_us=now_us)).items():
        dated = _day(kept.at_us)
        if code not in found or found[code].dated <= dated:
            found[code] = FxRate(code, kept.rate, dated, kept.source)
    most = settings.prices.fx_max_age_days
    return {code: aged(each, today, most) for code, each in found.items()}


def aged(rate: FxRate, today: date, most_days: int) -> FxRate:
    """The same rate, marked when it is too old to count by. Pure."""
    age = (today - rate.dated).days
    if age <= most_days:
        return rate
    why = (
        f"the newest rate of {rate.currency} to USD is of {rate.dated.isoformat()} ({rate.source}), {age} days ago; "
        f"{most_days} are the most allowed: give a newer one (`broker ledger rates add`)"
    )
    return FxRate(rate.currency, rate.usd, rate.dated, rate.source, too_old=why)


@dataclass(slots=True)
class RatesOfDay:
    """What the adapters are given: looked up before each poll, so that a rate of today counts from the next poll on."""

    _found: Mapping[str, FxRate] = field(default_factory=lambda: MappingProxyType({}))

    def all(self) -> Mapping[str, FxRate]:
        return self._found

    async def look(self, session: AsyncSession, settings: Settings, now_us: int) -> None:
        self._found = MappingProxyType(await fx_rates(session, settings, now_us))


def _day(at_us: int) -> date:
    return datetime.fromtimestamp(at_us / 1_000_000, UTC).date()
