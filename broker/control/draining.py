"""Ending a rental in good order: its worker finishes, commits and says goodbye before the machine is released."""

from __future__ import annotations

from collections.abc import Mapping

import structlog
from sqlalchemy.ext.asyncio import AsyncSession

from broker.tables import Worker
from markets import rentals
from markets.tables import RentalRow

log = structlog.get_logger()


async def drain(session: AsyncSession, row: RentalRow, reason: str, now_us: int) -> None:
    """Let the worker finish and say goodbye; a machine without a worker is released at once."""
    worker = await session.get(Worker, row.id)
    if worker is None or worker.state == "awaited":
        await rentals.request_release(session, row.id, reason=reason, now_us=now_us)
    elif worker.drain_reason is None:
        worker.drain_reason = reason
        log.info("worker.drain", rental=row.id, reason=reason)


async def drain_all(session: AsyncSession, reasons: Mapping[str, str], now_us: int) -> None:
    """Drain several rentals, by their ids, each for its reason; all are locked before any worker (broker/lock_order.py)."""
    rows = [await rentals.locked(session, rental) for rental in sorted(reasons)]
    for row in rows:
        await drain(session, row, reasons[row.id], now_us)
    await session.flush()
