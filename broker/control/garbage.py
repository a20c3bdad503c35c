"""The garbage loop: old plans, then objects that no row needs (`jobs/garbage.py`), a bounded piece of the store each time.

First the store is listed, then the rows are asked, then objects are removed: a crash in between removes nothing that is
needed, and the next round begins again. Whoever shares a bucket and prefix with another broker would see its objects without
rows, so the place is marked as this broker's, and nothing is removed from one that is marked as another's.
"""

from __future__ import annotations

from dataclasses import dataclass

import structlog

from broker.compliance import destruction
from broker.control.plan_memory import forget_plans
from broker.services import Services
from jobs import garbage
from jobs.clock import MICROSECONDS, db_now
from jobs.errors import ObjectExists, ObjectMissing
from jobs.objects import Listed, ObjectStore

log = structlog.get_logger()
OWNER_KEY = ".owner"
PAGE = 5_000
# Plans that one transaction removes: a snapshot may have megabytes.
PLANS_AT_ONCE = 100


async def marked_owner(store: ObjectStore) -> str | None:
    """Whose objects lie here, or None if nobody marked the place. Raises StoreFailed."""
    try:
        return (await store.get(OWNER_KEY)).decode()
    except ObjectMissing:
        return None


async def mark(store: ObjectStore, owner: str) -> str:
    """`owner`'s from now on, or whoever was first's. Raises StoreFailed."""
    try:
        await store.put(OWNER_KEY, owner.encode())
    except ObjectExists:
        return (await store.get(OWNER_KEY)).decode()
    return owner


@dataclass
class GarbageCollector:
    """`_after` is the key where the previous round stopped, `_after_owner` the owner of a key."""

    services: Services
    _after: str = ""
    _after_owner: str = ""

    async def step(self) -> None:
        await self._forget_plans()
        await self._retire_keys()
        store, control = self.services.store, self.services.settings.control
        if control.max_objects_per_cycle == 0 or not await self._is_ours():
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

    async def _forget_plans(self) -> None:
        keep, forgotten, total = self.services.settings.control.keep_plans, PLANS_AT_ONCE, 0
        while forgotten == PLANS_AT_ONCE:
            async with self.services.database.transaction() as session:
                forgotten = await forget_plans(session, keep=keep, limit=PLANS_AT_ONCE)
            total += forgotten
        if total:
            log.info("plans.forgotten", plans=total)

    async def _retire_keys(self) -> None:
        """Destroy the keys of what nobody needs any more and whose end did not say so: batches that failed at their start,
        uploads that a crash cut off, answers that are no longer remembered."""
        async with self.services.database.transaction() as session:
            before_us = await db_now(session) - self.services.settings.control.orphan_grace_s * MICROSECONDS
            owners = await destruction.left_over(session, after=self._after_owner, before_us=before_us)
            gone = await destruction.retire(session, self.services.secret, owners, "unneeded")
        self.services.forget_keys(gone)
        self._after_owner = owners[-1] if len(owners) == destruction.AT_ONCE else ""

    async def _is_ours(self) -> bool:
        """Whether the place is marked as this broker's. An unmarked one is marked, unless it holds what looks like a
        broker's objects and is in no row of ours: two brokers may have shared it before places were marked."""
        store, us = self.services.store, self.services.owner
        owner = await marked_owner(store)
        if owner is None:
            if foreign := await self._unknown(await store.page("", PAGE)):
                mend = (
                    f"give each broker an objects.prefix; or, if all is this broker's, put its owner into {OWNER_KEY}"
                )
                log.error("objects.unknown", objects=len(foreign), example=foreign[0], us=us, mend=mend)
                return False
            owner = await mark(store, us)
        if owner != us:
            log.error("objects.shared", owner=owner, us=us, mend="give each broker an objects.prefix")
        return owner == us

    async def _unknown(self, page: list[Listed]) -> list[str]:
        """Keys of the form of ours, written long ago, that are in no row."""
        async with self.services.database.transaction() as session:
            before_us = await db_now(session) - self.services.settings.control.orphan_grace_s * MICROSECONDS
            return await garbage.unneeded(session, [each.key for each in page if each.written_us < before_us])

    async def _remove(self, orphan: Listed) -> None:
        await self.services.store.delete(orphan.key)
        self.services.counters.orphan_removed(orphan.size)
