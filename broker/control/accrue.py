"""The accrual loop: book what the market confirmed, keep each hold ahead of its spending, stop what may not go on.

The market's "running at seen_at" is what is booked up to, so the books never run ahead of the provider's own meter; the
hold covers what lies between.
"""

from __future__ import annotations

from dataclasses import dataclass

import structlog
from sqlalchemy.ext.asyncio import AsyncSession

from broker.control.settle import ACTOR, meter_of
from broker.control.snapshot import max_nano
from broker.costs import batch_costs
from broker.services import Services
from broker.tables import Waiting, Worker
from jobs import batches
from jobs.clock import db_now
from ledger.accrual import accrue
from ledger.errors import HoldExceeded
from ledger.holds import extend_hold, hold
from ledger.money import cost_of_seconds
from markets import rentals
from markets.tables import RentalRow

log = structlog.get_logger()
SECOND_US = 1_000_000


@dataclass
class Accruer:
    services: Services

    async def step(self) -> None:
        async with self.services.database.transaction() as session:
            rows = [row for row in await rentals.open_rentals(session) if row.started_us and row.last_seen_us]
        for row in rows:
            async with self.services.database.transaction() as session:
                await self._book(session, row)
        async with self.services.database.transaction() as session:
            await self._stop_over_budget(session, rows)

    async def _book(self, session: AsyncSession, row: RentalRow) -> None:
        now_us = await db_now(session)
        assert row.last_seen_us is not None
        await accrue(session, meter_of(row), until_us=row.last_seen_us, final=False, actor=ACTOR, recorded_at_us=now_us)
        await self._keep_ahead(session, row, now_us)

    async def _keep_ahead(self, session: AsyncSession, row: RentalRow, now_us: int) -> None:
        """Extend the hold while less than `margin` is left; when the budget refuses, drain: spending stops by itself."""
        opened = await hold(session, row.id)
        if opened is None or opened.resolved is not None or row.state == "releasing":
            return
        margin = cost_of_seconds(row.price_nano_hour, self._margin_s(row))
        if opened.remaining_nano >= margin:
            return
        sequence = opened.nano  # grows with every extension, so a repeat after a crash is the same extension
        try:
            await extend_hold(
                session, hold_id=row.id, add_nano=4 * margin, sequence=sequence, occurred_at_us=now_us, actor=ACTOR
            )
        except HoldExceeded as refused:
            log.warning("rental.over_budget", rental=row.id, error=str(refused))
            await drain(session, row, f"budget: {refused}", now_us)

    def _margin_s(self, row: RentalRow) -> int:
        """Seconds that may pass unseen: a few accrual ticks, one billing increment, and the way to a confirmed release."""
        control = self.services.settings.control
        return round(3 * max(control.accrue_s, control.reconcile_s)) + row.granularity_s + 10

    async def _stop_over_budget(self, session: AsyncSession, rows: list[RentalRow]) -> None:
        """A batch whose cost would pass its `max_usd` before the next ticks gets no more machine time; it waits, visibly."""
        limited = {
            b.id: limit
            for b in await batches.active_batches(session)
            if (limit := max_nano((b.wishes or {}).get("max_usd"))) is not None
        }
        if not limited:
            return
        now_us = await db_now(session)
        costs = await batch_costs(session, list(limited))
        for batch_id, limit in limited.items():
            mine = [row for row in rows if batch_id in row.purpose.get("batches", ()) and row.state == "running"]
            ahead = sum(cost_of_seconds(row.price_nano_hour, self._margin_s(row)) for row in mine)
            if not mine or costs[batch_id].nano + ahead <= limit:
                continue
            reason = (
                f"budget: {costs[batch_id].nano} of {limit} nano-USD spent, {ahead} more before it could stop later"
            )
            await session.merge(
                Waiting(batch=batch_id, plan="", waiting_on="budget", reasons=[reason], relaxations=[], since_us=now_us)
            )
            for row in mine:
                await drain(session, row, reason, now_us)


async def drain(session: AsyncSession, row: RentalRow, reason: str, now_us: int) -> None:
    """Let the worker finish and say goodbye; a machine without a worker is released at once."""
    worker = await session.get(Worker, row.id)
    if worker is None or worker.state == "awaited":
        await rentals.request_release(session, row.id, reason=reason, now_us=now_us)
    elif worker.drain_reason is None:
        worker.drain_reason = reason
        log.info("worker.drain", rental=row.id, reason=reason)
