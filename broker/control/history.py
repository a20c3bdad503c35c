"""The history loop: days of the price book that are old enough become one line an offer, and offers that were gone by then
are forgotten."""

from __future__ import annotations

from dataclasses import dataclass

from broker.services import Services
from jobs.clock import db_now
from markets.history import forget_gone, roll_up

# In one transaction; a market of 100,000 offers takes a few rounds.
OFFERS_AT_ONCE = 500


@dataclass
class HistoryKeeper:
    """The roll-up, some offers at a time so that no transaction is long."""

    services: Services

    async def step(self) -> None:
        prices, written = self.services.settings.prices, 1
        while written:
            async with self.services.database.transaction() as session:
                written = await roll_up(
                    session,
                    now_us=await db_now(session),
                    keep_days=prices.keep_days,
                    keep_rolled_days=prices.keep_rolled_days,
                    limit=OFFERS_AT_ONCE,
                )
        forgotten = OFFERS_AT_ONCE
        while forgotten == OFFERS_AT_ONCE:
            async with self.services.database.transaction() as session:
                now_us = await db_now(session)
                forgotten = await forget_gone(session, now_us=now_us, keep_days=prices.keep_days, limit=OFFERS_AT_ONCE)
