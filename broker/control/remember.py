"""The remember loop: where the answers of ended batches lie is kept for later batches of the same project, for a time.

Only batches that asked for reuse and ran on a pinned model, on machines that load its weights, are remembered. Rows say where an
answer lies, not what it is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import structlog
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from broker.compliance.tables import DecisionRow
from broker.control.intake import validate_batch
from broker.control.own_answers import decide, pages, requests_of
from broker.model_revision import revision_of
from broker.services import Services
from jobs import answers
from jobs.answered import AnsweredLines
from jobs.clock import MICROSECONDS, db_now
from jobs.errors import JobsError, ObjectMissing
from jobs.tables import Batch, Part
from markets.tables import RentalRow

log = structlog.get_logger()
FORGET_EVERY_US = 3600 * MICROSECONDS
DAY_US = 86_400 * MICROSECONDS


@dataclass
class Rememberer:
    """`forgot_us` is when answers that are too old were last forgotten."""

    services: Services
    forgot_us: int = 0

    async def step(self) -> None:
        async with self.services.database.transaction() as session:
            now_us, ended = await db_now(session), await self._ended(session)
        for batch in ended:
            try:
                async with self.services.claimed("remember", batch.id) as mine:
                    if mine is not None:
                        await Rememberer(mine)._remember(batch.id)
            except (JobsError, OSError) as failure:
                # it is tried again; only a saving is at stake
                log.error("batch.remember_failed", batch=batch.id, error=f"{type(failure).__name__}: {failure}")
        if now_us - self.forgot_us >= FORGET_EVERY_US:
            await self._forget(now_us)

    async def _ended(self, session: AsyncSession) -> Sequence[Batch]:
        statement = select(Batch).where(
            col(Batch.revision).is_not(None),
            col(Batch.remembered_us).is_(None),
            col(Batch.status).in_(("completed", "expired", "cancelled")),
        )
        return (await session.scalars(statement.order_by(col(Batch.id)))).all()

    async def _remember(self, batch_id: str) -> None:
        """Keep where this batch's answers lie, for later batches of its project. Without its input nothing is kept."""
        async with self.services.database.transaction() as session:
            batch = await session.get_one(Batch, batch_id)
        if batch.remembered_us is not None:
            return  # by another broker, since the list was made
        kept = 0
        if self._still_answers(batch) and not await self._was_repinned(batch) and not await self._was_bought(batch):
            kept = await self._keep(batch)
        async with self.services.database.transaction() as session:
            row = await session.get_one(Batch, batch.id)
            row.remembered_us = await db_now(session)
        log.info("batch.remembered", batch=batch.id, answers=kept)

    def _still_answers(self, batch: Batch) -> bool:
        """Whether the model is the one that it was when the batch began: else nobody knows which of the two answered."""
        profile = self.services.models.get(batch.model or "")
        return profile is not None and revision_of(profile) == batch.revision

    async def _was_repinned(self, batch: Batch) -> bool:
        """Whether another policy held for the batch earlier: then some of its answers may have been computed where the one
        that it is pinned to now, under which they would be remembered, forbids."""
        statement = select(col(DecisionRow.seq)).where(
            col(DecisionRow.batch) == batch.id, col(DecisionRow.kind) == "pin", col(DecisionRow.point) == "policy"
        )
        async with self.services.database.transaction() as session:
            return await session.scalar(statement.limit(1)) is not None

    async def _was_bought(self, batch: Batch) -> bool:
        """Whether a token endpoint answered some of it: which weights those were is the endpoint's word alone, and a line without
        a limit was sent with one, so its answer may be shorter than what a machine writes."""
        statement = (
            select(col(Part.shard_id))
            .join(RentalRow, col(RentalRow.id) == col(Part.placement_id))
            .where(col(Part.batch_id) == batch.id, col(RentalRow.pricing) == "token")
        )
        async with self.services.database.transaction() as session:
            return await session.scalar(statement.limit(1)) is not None

    async def _keep(self, batch: Batch) -> int:
        try:
            found = await validate_batch(self.services, batch)
        except ObjectMissing:
            return 0  # it was deleted: nobody can say any more what was asked
        if found.findings or found.repeatable is None:
            return 0
        follows = await asyncio.to_thread(lambda: decide(found).follows)
        async with self.services.database.transaction() as session:
            lines = await AnsweredLines.of(session, batch.id)
        kept = 0
        for page in pages(requests_of(batch, found, batch.revision or "", without=follows)):
            async with self.services.database.transaction() as session:
                if not await answers.may_remember(session, batch):
                    return kept  # a person deleted what it asked or answered; what was kept so far is forgotten with it
                answered = await lines.find(session, page, own=False)
                new = {name: known for line, name in page.items() if (known := answered.get(line)) is not None}
                kept += await answers.remember(session, batch, new, await db_now(session))
        return kept

    async def _forget(self, now_us: int) -> None:
        async with self.services.database.transaction() as session:
            await answers.forget_before(session, now_us - self.services.settings.jobs.reuse_days * DAY_US)
        self.forgot_us = now_us
