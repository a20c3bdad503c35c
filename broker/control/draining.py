"""Ending a rental in good order: its worker finishes, commits and says goodbye before the machine is released."""

from __future__ import annotations

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
