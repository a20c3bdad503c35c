"""The end of a rental: free its shards, book its last second, give its hold back; all in one transaction, once."""

from __future__ import annotations

from dataclasses import dataclass

import structlog
from sqlalchemy.ext.asyncio import AsyncSession

from broker.budgets import nodes_above
from broker.control.avoided import book_avoided
from broker.control.besides import book_besides, book_deposit, book_refund
from broker.control.lives import life_of
from broker.services import Services
from broker.tables import Worker
from broker.token_buying import is_bought
from broker.token_costs import accrue_used
from jobs import leases
from jobs.clock import db_now
from jobs.errors import JobsError
from ledger.accrual import LEAKED, Meter, accrue
from ledger.errors import LedgerError
from ledger.holds import hold, void_hold
from ledger.waste import split, split_tokens
from markets import rentals
from markets.errors import MarketsError
from markets.tables import RentalRow

log = structlog.get_logger()
ACTOR = "broker.accrual"


def meter_of(row: RentalRow, scopes: tuple[str, ...]) -> Meter:
    """The ledger's view of a rental that the market has confirmed; `scopes` are the nodes above its project.

    Raises ValueError for one that never started.
    """
    if row.started_us is None:
        raise ValueError(f"rental {row.id} has no confirmed start; nothing is metered")
    return Meter(
        rental=row.id,
        offer_key=row.offer_key,
        market=row.market,
        pricing=row.pricing,
        project=row.project,
        batch=None,
        price_nano_hour=row.price_nano_hour,
        started_us=row.started_us,
        granularity_s=row.granularity_s,
        minimum_s=row.minimum_s,
        scopes=scopes,
    )


@dataclass
class Settler:
    """Books what is over. A crash before its transaction leaves `settled` false, and the next round finds it."""

    services: Services

    async def step(self) -> None:
        async with self.services.database.transaction() as session:
            over = [row.id for row in await rentals.unsettled(session)]
        for rental_id in over:
            try:
                async with self.services.database.transaction() as session:
                    await settle(session, rental_id, now_us=await db_now(session))
            except (LedgerError, MarketsError, JobsError) as failure:
                # its hold stays, visibly; the other rentals' money must not wait for it
                log.error("settle.failed", rental=rental_id, code=failure.code, error=str(failure))
        if over:
            self.services.nudge("plan")
            self.services.nudge("finalise")


async def settle(session: AsyncSession, rental_id: str, *, now_us: int) -> None:
    """Final accrual by the market's own end, what was agreed besides, hold voided, leases abandoned, worker gone.

    For an intent that never became a machine there is nothing to book; its hold goes back at once.
    """
    row = await rentals.get(session, rental_id)
    await rentals.locked(session, rental_id)
    await leases.abandon(session, placement_id=rental_id, blame=row.end_reason in ("exited", "failed"))
    await _worker_gone(session, rental_id, now_us)
    await session.flush()  # rental, shards, worker, then the books (broker/lock_order.py)
    if row.started_us is not None and row.ended_us is not None:
        actor = LEAKED if row.purpose.get("leaked") else ACTOR
        meter = meter_of(row, await nodes_above(session, row.project))
        at_us = max(row.ended_us, row.started_us)
        if is_bought(row):
            wasted = await accrue_used(
                session, row, meter, until_us=at_us, final=True, actor=actor, recorded_at_us=now_us
            )
            await split_tokens(session, meter, wasted, occurred_at_us=at_us, actor=ACTOR, recorded_at_us=now_us)
        else:
            await accrue(session, meter, until_us=row.ended_us, final=True, actor=actor, recorded_at_us=now_us)
            life = await life_of(session, row)
            await split(session, meter, life, occurred_at_us=at_us, actor=ACTOR, recorded_at_us=now_us)
            await book_refund(session, row, meter, actor=ACTOR, now_us=now_us)
        await book_deposit(session, row, meter, is_over=True, actor=ACTOR, now_us=now_us)
        besides = await book_besides(session, row, meter, occurred_at_us=at_us, actor=actor, now_us=now_us)
        await book_avoided(session, row, besides_nano=besides, now_us=now_us)
    await _void(session, rental_id, now_us)
    await rentals.settle(session, rental_id)
    log.info("rental.settled", rental=rental_id, state=row.state, reason=row.end_reason, exit_status=row.exit_status)


async def _worker_gone(session: AsyncSession, rental_id: str, now_us: int) -> None:
    worker = await session.get(Worker, rental_id)
    if worker is not None:
        worker.session += 1  # cuts off every token that is still out there
        worker.gone_us = worker.gone_us or now_us
        if worker.state not in ("gone", "failed"):
            worker.state = "gone"


async def _void(session: AsyncSession, rental_id: str, now_us: int) -> None:
    opened = await hold(session, rental_id)
    if opened is not None and opened.resolved is None:
        await void_hold(session, hold_id=rental_id, occurred_at_us=now_us, actor=ACTOR)
