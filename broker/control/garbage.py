"""The garbage loop: objects that no row needs (`jobs/garbage.py`), a bounded piece of the store each time.

First the store is listed, then the rows are asked, then objects are removed: a crash in between removes nothing that is
needed, and the next round begins again. Whoever shares a bucket and prefix with another broker would see its objects without
rows, so the place is marked as this broker's, and nothing is removed from one that is marked as another's.
"""

from __future__ import annotations

from dataclasses import dataclass

import structlog

from broker.services import Services
from jobs import garbage
from jobs.clock import MICROSECONDS, db_now
from jobs.errors import ObjectExists
from jobs.objects import Listed, ObjectStore

log = structlog.get_logger()
OWNER_KEY = ".owner"
PAGE = 5_000


async def owner_of(store: ObjectStore, owner: str) -> str:
    """Whose objects lie here: `owner`'s from now on if nobody marked the place before. Raises StoreFailed."""
    try:
        await store.put(OWNER_KEY, owner.encode())
    except ObjectExists:
        return (await store.get(OWNER_KEY)).decode()
    return owner


@dataclass
class GarbageCollector:
    """`_after` is the key where the previous round stopped."""

    services: Services
    _after: str = ""

    async def step(self) -> None:
        store, control = self.services.store, self.services.settings.control
        marked = await owner_of(store, self.services.owner)
        if marked != self.services.owner:
            log.error("objects.shared", owner=marked, us=self.services.owner, mend="give each broker an objects.prefix")
            return
        page = await store.page(self._after, PAGE)
        async with self.services.database.transaction() as session:
            before_us = await db_now(session) - control.orphan_grace_s * MICROSECONDS
            old = {each.key: each for each in page if each.written_us < before_us}
            doomed = await garbage.unneeded(session, list(old))
        doomed = doomed[: control.max_objects_per_cycle]
        for key in doomed:
            await self._remove(old[key])
        is_cut = len(doomed) == control.max_objects_per_cycle
        self._after = doomed[-1] if is_cut else page[-1].key if len(page) == PAGE else ""
        if doomed:
            log.info("objects.orphans_removed", objects=len(doomed), bytes=sum(old[key].size for key in doomed))

    async def _remove(self, orphan: Listed) -> None:
        await self.services.store.delete(orphan.key)
        self.services.counters.orphan_removed(orphan.size)
