"""The accrual loop: book what the market confirmed, keep each hold ahead of its spending, stop what may not go on.

The market's "running at seen_at" is what is booked up to, so the books never run ahead of the provider's own meter; the
hold covers what lies between.
"""

from __future__ import annotations

from dataclasses import dataclass

import structlog
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from broker.budgets import Placement, admit, nodes_above
from broker.control.ceiling import stop_at_ceiling
from broker.control.draining import drain
from broker.control.settle import ACTOR, meter_of
from broker.services import Services
from jobs.clock import db_now
from ledger.accrual import accrue
from ledger.commitments import amortise, commitments
from ledger.errors import HoldExceeded, LedgerError
from ledger.holds import extend_hold, hold
from ledger.money import cost_of_seconds
from markets import rentals
from markets.errors import MarketsError
from markets.tables import RentalRow

log = structlog.get_logger()


@dataclass
class Accruer:
    services: Services

    async def step(self) -> None:
        await self._amortise()
        await self._meter()

    async def _amortise(self) -> None:
        """What was bought ahead costs money by the hour, whether or not a machine uses it."""
        async with self.services.database.transaction() as session:
            now_us = await db_now(session)
            for bought in await commitments(session):
                query = select(col(RentalRow.started_us), col(RentalRow.ended_us)).where(
                    col(RentalRow.market) == bought.market,
                    col(RentalRow.pricing) == "reserved",
                    col(RentalRow.started_us).is_not(None),
                )
                rows = (await session.execute(query)).all()
                spans = [(begun, ended or now_us) for begun, ended in rows if begun is not None]
                await amortise(session, bought, spans, now_us=now_us)

    async def _meter(self) -> None:
        async with self.services.database.transaction() as session:
            rows = [row for row in await rentals.open_rentals(session) if row.started_us and row.last_seen_us]
            if not rows:
                await stop_at_ceiling(session, self.services.settings.control, await db_now(session))
                return
        for row in rows:
            try:
                async with self.services.database.transaction() as session:
                    await self._book(session, row)
            except (LedgerError, MarketsError) as failure:
                # one meter that cannot be booked must not stop the others, nor the ceilings below
                log.error("accrue.failed", rental=row.id, code=failure.code, error=str(failure))
        async with self.services.database.transaction() as session:
            await stop_at_ceiling(session, self.services.settings.control, await db_now(session))

    async def _book(self, session: AsyncSession, row: RentalRow) -> None:
        now_us = await db_now(session)
        assert row.last_seen_us is not None
        meter = meter_of(row, await nodes_above(session, row.project))
        await accrue(session, meter, until_us=row.last_seen_us, final=False, actor=ACTOR, recorded_at_us=now_us)
        await self._keep_ahead(session, row, now_us)

    async def _keep_ahead(self, session: AsyncSession, row: RentalRow, now_us: int) -> None:
        """Extend the hold while less than `margin` is left; when the budget refuses, drain: spending stops by itself."""
        opened = await hold(session, row.id)
        if opened is None or opened.resolved is not None or row.state == "releasing":
            return
        margin = cost_of_seconds(row.price_nano_hour, self.services.settings.control.unseen_s + row.granularity_s)
        if opened.remaining_nano >= margin:
            return
        sequence = opened.nano  # grows with every extension, so a repeat after a crash is the same extension
        try:
            served = tuple(str(each) for each in row.purpose.get("batches", ()))
            await admit(session, Placement(row.project, served, 4 * margin, is_running=True), now_us=now_us)
            await extend_hold(
                session, hold_id=row.id, add_nano=4 * margin, sequence=sequence, occurred_at_us=now_us, actor=ACTOR
            )
        except HoldExceeded as refused:
            log.warning("rental.over_budget", rental=row.id, error=str(refused))
            await drain(session, row, f"budget: {refused}", now_us)
