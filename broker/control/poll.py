"""The poll loop: ask every market for its offers, side by side; one that hangs or fails hurts nobody else."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import structlog

from broker.services import Services
from jobs.clock import db_now
from markets import price_book
from markets.errors import MarketsError
from markets.market import PriceSource
from markets.offer import Offer

log = structlog.get_logger()


@dataclass
class Poller:
    services: Services

    async def step(self) -> None:
        asked = {**self.services.markets, **await self.services.providers.wanted()}
        await asyncio.gather(*(self._poll(name, source) for name, source in asked.items()))
        self.services.nudge("plan")

    async def _poll(self, name: str, market: PriceSource) -> None:
        """One market's answer into the price book; a failure is remembered and refreshes nothing."""
        try:
            async with asyncio.timeout(max(5.0, self.services.settings.control.poll_s)):
                offers: list[Offer] | str = await market.offers()
        except MarketsError as failure:
            offers = f"{failure.code}: {failure}"
        except TimeoutError:
            offers = "no answer before the next poll was due"
        except OSError as failure:
            offers = f"{type(failure).__name__}: {failure}"
        if not isinstance(offers, str):
            try:
                async with self.services.database.transaction() as session:
                    await price_book.store_offers(session, name, offers, now_us=await db_now(session))
                return
            except ValueError as bad:  # a key twice, or another market's: nothing of this answer can be trusted
                offers = f"bad answer: {bad}"
        async with self.services.database.transaction() as session:
            await price_book.poll_failed(session, name, error=offers, now_us=await db_now(session))
