"""The reconcile loop: what each market really has, beside what we believe; then the difference, carried out.

The sweep decides (pure, `markets/sweep.py`); this shell reads, acts, and never concludes anything from a list that failed.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import structlog
from sqlalchemy.ext.asyncio import AsyncSession

from broker.services import Services
from broker.tables import Worker
from jobs.clock import db_now
from markets import rentals
from markets.errors import MarketsError, RentalNotFound, StillReleasing
from markets.market import Market, Rental
from markets.tables import RentalRow

log = structlog.get_logger()
SECOND_US = 1_000_000


@dataclass
class Reconciler:
    services: Services
    _started_us: int = 0

    async def step(self) -> None:
        await asyncio.gather(*(self._market(name, market) for name, market in self.services.markets.items()))
        self.services.nudge("settle")

    async def _market(self, name: str, market: Market) -> None:
        """One market; its failure is logged and hurts no other."""
        await self._give_up_on_silent(name)
        await self._release(name, market)
        try:
            async with asyncio.timeout(max(10.0, 2 * self.services.settings.control.reconcile_s)):
                listed = await market.rentals()
        except MarketsError as failure:
            log.warning("reconcile.failed", market=name, error=f"{failure.code}: {failure}")
            return
        except TimeoutError:
            log.warning("reconcile.failed", market=name, error="no answer in time")
            return
        await self.sweep(name, market, listed)

    async def sweep(self, name: str, market: Market, listed: list[Rental]) -> None:
        for rental in listed:
            await self._observe(rental)

    async def _give_up_on_silent(self, name: str) -> None:
        """Ask for the release of machines whose worker is gone, failed, or has not been heard of for too long."""
        async with self.services.database.transaction() as session:
            now_us = await db_now(session)
            for row in await rentals.open_rentals(session, name):
                reason = silence(row, await session.get(Worker, row.id), now_us, self._since_us(now_us), self._patience_us(row))
                if reason and row.state == "running":
                    log.warning("rental.given_up", rental=row.id, reason=reason)
                    await rentals.request_release(session, row.id, reason=reason, now_us=now_us)

    def _since_us(self, now_us: int) -> int:
        self._started_us = self._started_us or now_us
        return self._started_us

    def _patience_us(self, row: RentalRow) -> tuple[int, int]:
        """How long a worker may take to say hello (its machine boots), and how long it may be silent afterwards."""
        control = self.services.settings.control
        boot_s = row.facts.get("boot_s") or 0
        return round((boot_s + control.create_grace_s) * SECOND_US), round(control.worker_silence_s * SECOND_US)

    async def _release(self, name: str, market: Market) -> None:
        async with self.services.database.transaction() as session:
            leaving = [row.id for row in await rentals.open_rentals(session, name) if row.state == "releasing"]
        for rental_id in leaving:
            try:
                async with asyncio.timeout(30):
                    await market.release(rental_id)
                    rental = await market.rental(rental_id)
            except StillReleasing:
                continue  # not confirmed: accrual goes on, the next round asks again
            except RentalNotFound:
                await self._never_was(rental_id)
                continue
            except (MarketsError, TimeoutError) as failure:
                log.warning("release.failed", rental=rental_id, error=f"{type(failure).__name__}: {failure}")
                continue
            await self._observe(rental)

    async def _never_was(self, rental_id: str) -> None:
        """The market has no such machine: it was never created, or it is long gone."""
        async with self.services.database.transaction() as session:
            row = await rentals.get(session, rental_id)
            now_us = await db_now(session)
            if row.started_us is None:
                await rentals.failed(session, rental_id, error="the market never had it", now_us=now_us)
            else:
                await rentals.lost(session, rental_id, error="the market no longer knows it", now_us=now_us)

    async def _observe(self, rental: Rental) -> None:
        async with self.services.database.transaction() as session:
            await rentals.observe(session, rental, now_us=await db_now(session))


def silence(row: RentalRow, worker: Worker | None, now_us: int, since_us: int, patience_us: tuple[int, int]) -> str | None:
    """Why a running rental's worker is given up, or None. Pure.

    `patience_us` is how long it may take to say hello and how long it may be silent. `since_us` is when this broker
    started to listen: nobody is blamed for what he said while the broker was down.
    """
    hello_us, silent_us = patience_us
    if worker is None or worker.state == "awaited":
        waited_us = now_us - max(row.created_us, since_us)
        return f"no worker said hello within {waited_us // SECOND_US} s" if waited_us > hello_us else None
    if worker.state == "failed":
        return f"its worker failed: {worker.error or 'no reason given'}"
    if worker.state == "gone":
        return "its worker said goodbye"
    quiet_us = now_us - max(worker.seen_us or row.created_us, since_us)
    return f"its worker has been silent for {quiet_us // SECOND_US} s" if quiet_us > silent_us else None
