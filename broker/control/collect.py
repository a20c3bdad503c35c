"""The collect loop: remove from the object store what no row needs any more: what uploads left over, expired files, and
streams that a crash cut off.

Rows speak first. What is removed here was already unreachable, so a crash at any point only means that it is done again.
"""

from __future__ import annotations

from dataclasses import dataclass

import structlog

from broker.compliance import destruction
from broker.compliance.deletion import seal_file_deletion
from broker.services import Services
from jobs import answers, files, uploads, views
from jobs.clock import db_now
from jobs.keys import upload_prefix

log = structlog.get_logger()


@dataclass
class Collector:
    services: Services

    async def step(self) -> None:
        async with self.services.database.transaction() as session:
            over = await uploads.leftovers(session)
            expired = await files.expired(session)
            now_us = await db_now(session)
        if abandoned := await self.services.store.remove_abandoned(now_us):
            log.info("objects.abandoned", removed=abandoned)
        for upload in over:
            await self._collect(upload.project, upload.id)
        for file in expired:
            await self.services.store.delete(file.object_key)
            await views.drop_views_of(self.services.store, self.services.database.transaction, file)
            async with self.services.database.transaction() as session:
                await files.removed(session, file.id)
                await answers.forget_file(session, file.id)
                owners = await destruction.owners_of_file(session, file)
                gone = await destruction.retire(session, self.services.secret, owners, "expired")
                await seal_file_deletion(
                    session, self.services.secret, file, now_us, why="expired", keys_destroyed=gone
                )
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
