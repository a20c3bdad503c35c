"""Who waits for events of a batch, and what wakes them: one poller a process, however many wait.

A commit in this process wakes the waiting at once. What other replicas write is found by one query a second over all
batches that are watched. A wake-up says no more than "look again": what there is to see, only the database knows.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import structlog
from sqlalchemy.ext.asyncio import AsyncSession

from broker.database import UNAVAILABLE, Database
from jobs import outbox

log = structlog.get_logger()

POLL_S = 1.0


class EventFeed:
    """The waiting of one process. `is_closing` is set for good when the server stops: who waits is woken to see it."""

    def __init__(self, database: Database) -> None:
        self.is_closing = False
        self._database = database
        self._watchers: dict[str, set[asyncio.Event]] = {}
        self._poller: asyncio.Task[None] | None = None
        database.after_commit.append(self._committed)

    @property
    def watched(self) -> frozenset[str]:
        """The batches that somebody waits for."""
        return frozenset(self._watchers)

    @asynccontextmanager
    async def watch(self, batch_id: str) -> AsyncIterator[asyncio.Event]:
        """An event that is set whenever there may be something new of the batch; whoever waits clears it first."""
        changed = asyncio.Event()
        self._watchers.setdefault(batch_id, set()).add(changed)
        if self._poller is None or self._poller.done():
            self._poller = asyncio.create_task(self._poll(), name="event feed")
        try:
            yield changed
        finally:
            self._watchers[batch_id].discard(changed)
            if not self._watchers[batch_id]:
                del self._watchers[batch_id]

    async def close(self) -> None:
        """Wake everybody for the last time."""
        self.is_closing = True
        for batch_id in self.watched:
            self._wake(batch_id)
        if self._poller is not None:
            self._poller.cancel()
            with suppress(asyncio.CancelledError):
                await self._poller

    def _committed(self, session: AsyncSession) -> None:
        for batch_id, _ in outbox.told(session):
            self._wake(batch_id)

    def _wake(self, batch_id: str) -> None:
        for changed in self._watchers.get(batch_id, ()):
            changed.set()

    async def _poll(self) -> None:
        seen: dict[str, int] = {}
        while self._watchers:
            await asyncio.sleep(POLL_S)
            try:
                async with self._database.transaction() as session:
                    newest = await outbox.newest(session, self.watched)
            except UNAVAILABLE as failure:
                log.warning("events.poll_failed", error=str(failure))
                continue
            for batch_id, number in newest.items():
                if seen.get(batch_id) != number:
                    self._wake(batch_id)
            seen = newest
