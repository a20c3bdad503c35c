"""The watch loop: tell, once for each change, why a batch does not move, and that it moves again."""

from __future__ import annotations

from dataclasses import dataclass

import structlog
from sqlalchemy import delete, select
from sqlmodel import col

from broker.control.around import around, facts
from broker.control.waiting import Wait, waiting_now
from broker.services import Services
from broker.tables import WaitingTold
from jobs import batches, outbox
from jobs.clock import MICROSECONDS, db_now
from jobs.tables import Batch
from jobs.transitions import locked
from jobs.types import TERMINAL

log = structlog.get_logger()


@dataclass
class Watcher:
    """What was told last is kept in a table: a broker that starts anew does not tell it again."""

    services: Services

    async def step(self) -> None:
        async with self.services.database.transaction() as session:
            active = await batches.active_batches(session)
            known = await around(session, active)
            open_ = select(col(Batch.id)).where(col(Batch.status).not_in(TERMINAL))
            await session.execute(delete(WaitingTold).where(col(WaitingTold.batch).not_in(open_)))
        for batch in active:
            wait = waiting_now(facts(batch, known[batch.id]))
            before = known[batch.id].told
            if (before.cause if before else None) != (wait.on if wait else None):
                await self._tell(batch, wait)

    async def _tell(self, batch: Batch, wait: Wait | None) -> None:
        """A transaction of its own: the batch's row is locked, and no two of them at once."""
        async with self.services.database.transaction() as session:
            now_us = await db_now(session)
            row = await locked(session, batch.id)
            if row.status in TERMINAL or row.version != batch.version:
                return  # it has moved on since it was looked at; the next round looks again
            since_us = wait.since_us if wait else now_us
            cause = wait.on if wait else None
            await session.merge(WaitingTold(batch=batch.id, cause=cause, since_us=since_us))
            payload = {"on": cause, "since": since_us // MICROSECONDS}
            outbox.append(session, row, "batch.waiting", payload, now_us)
        log.info(
            "batch.waiting" if wait else "batch.moving",
            batch=batch.id,
            on=cause,
            since_us=since_us,
            reason=wait.reasons[0] if wait else None,
        )
