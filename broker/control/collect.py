"""The collect loop: remove from the object store what no row needs any more: what uploads left over, expired files, and
streams that a crash cut off.

Rows speak first. What is removed here was already unreachable, so a crash at any point only means that it is done again.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import structlog

from broker import used_proofs
from broker.claims import forget_old
from broker.compliance import destruction
from broker.compliance.deletion import seal_file_deletion
from broker.services import Services
from jobs import answers, files, uploads, views
from jobs.clock import MICROSECONDS, db_now
from jobs.errors import JobsError
from jobs.keys import upload_prefix
from jobs.tables import File

log = structlog.get_logger()
DAY_US = 86_400 * MICROSECONDS


@contextmanager
def _told(failures: list[JobsError | OSError], what: str) -> Iterator[None]:
    try:
        yield
    except (JobsError, OSError) as failure:
        log.warning("collect.failed", what=what, error=f"{type(failure).__name__}: {failure}")
        failures.append(failure)


@dataclass
class Collector:
    services: Services

    async def step(self) -> None:
        """What cannot be removed is told, and keeps nothing else from it: rows that only time ends go first."""
        async with self.services.database.transaction() as session:
            now_us = await db_now(session)
            await used_proofs.forget(session, now_us)
            if self.services.claims is not None:
                await forget_old(session, now_us - DAY_US)
        async with self.services.database.transaction() as session:
            over = await uploads.leftovers(session)
            expired = await files.expired(session)
        failures: list[JobsError | OSError] = []
        with _told(failures, "what streams left over"):
            if abandoned := await self.services.store.remove_abandoned(now_us):
                log.info("objects.abandoned", removed=abandoned)
        for upload in over:
            with _told(failures, upload.id):
                async with self.services.claimed("collect", upload.id) as mine:
                    if mine is not None:
                        await Collector(mine)._collect(upload.project, upload.id)
        for file in expired:
            with _told(failures, file.id):
                async with self.services.claimed("collect", file.id) as mine:
                    if mine is not None:
                        await Collector(mine)._remove(file, now_us)
        if failures:
            raise failures[0]  # /readyz and the metrics are to know

    async def _remove(self, file: File, now_us: int) -> None:
        await self.services.store.delete(file.object_key)
        await views.drop_views_of(self.services.store, self.services.database.transaction, file)
        async with self.services.database.transaction() as session:
            row = await session.get_one(File, file.id, with_for_update=True, populate_existing=True)
            if row.deleted_us is not None:
                return  # another broker did it since the list was made, and there is one receipt
            await files.removed(session, file.id)
            await answers.forget_file(session, file.id)
            owners = await destruction.owners_of_file(session, file)
            gone = await destruction.retire(session, self.services.secret, owners, "expired")
            await seal_file_deletion(session, self.services.secret, file, now_us, why="expired", keys_destroyed=gone)
        self.services.forget_keys(gone)

    async def _collect(self, project: str, upload_id: str) -> None:
        """Everything that the upload wrote goes, except the file that it became; also what a crash left without a row."""
        store, prefix = self.services.store, upload_prefix(project, upload_id)
        async with self.services.database.transaction() as session:
            kept = await uploads.expire(session, upload_id)
        left = [key async for key in store.keys(prefix) if key != kept]
        for key in left:
            await store.delete(key)
        async with self.services.database.transaction() as session:
            await uploads.collected(session, upload_id)
            gone = await destruction.retire(session, self.services.secret, [upload_id], "expired")
        self.services.forget_keys(gone)
        log.info("upload.collected", upload=upload_id, objects=len(left))
