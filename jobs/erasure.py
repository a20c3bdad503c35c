"""Erasing what a project's people gave and got: prompts, answers, and what they typed. What remains are ids and counts,
which the books rest on.
"""

from __future__ import annotations

import structlog
from sqlalchemy import delete, null, select, update
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from jobs.clock import db_now
from jobs.errors import BadTransition
from jobs.tables import AnswerRow, Batch, File, LineTag, UploadRow
from jobs.types import TERMINAL

log = structlog.get_logger()
ERASED = "erased"  # instead of a file's name


async def erase(session: AsyncSession, project: str) -> None:
    """Mark every file of the project deleted, and forget names, metadata, tags, quoted lines and remembered answers; the
    caller then deletes the project's objects. Erasing twice is erasing once.

    Raises BadTransition while a batch of the project has not ended.
    """
    statement = select(col(Batch.id)).where(col(Batch.project) == project, col(Batch.status).not_in(TERMINAL)).limit(1)
    if (alive := await session.scalar(statement)) is not None:
        raise BadTransition(f"batch {alive} of project {project} has not ended; cancel it first", param="project")
    now_us = await db_now(session)
    await session.execute(
        update(File).where(col(File.project) == project, col(File.deleted_us).is_(None)).values(deleted_us=now_us)
    )
    await session.execute(update(File).where(col(File.project) == project).values(filename=ERASED))
    await session.execute(update(UploadRow).where(col(UploadRow.project) == project).values(filename=ERASED))
    pending = update(UploadRow).where(col(UploadRow.project) == project, col(UploadRow.status) == "pending")
    await session.execute(pending.values(status="cancelled"))
    await session.execute(delete(AnswerRow).where(col(AnswerRow.project) == project))
    of_project = select(col(Batch.id)).where(col(Batch.project) == project)
    await session.execute(delete(LineTag).where(col(LineTag.batch_id).in_(of_project)))
    forgotten = {"metadata_": null(), "errors": null()}
    await session.execute(update(Batch).where(col(Batch.project) == project).values(**forgotten))
    batches = await session.stream_scalars(select(Batch).where(col(Batch.project) == project))
    async for batch in batches:
        if (batch.wishes or {}).get("tags"):
            batch.wishes = {**(batch.wishes or {}), "tags": {}}
    log.info("project.erased", project=project)
