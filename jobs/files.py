"""Files of a project: rows about immutable objects. The objects themselves are written and removed by the caller,
outside the transaction."""

from __future__ import annotations

from typing import Generic, Literal, TypeVar

import structlog
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from jobs.clock import db_now
from jobs.errors import BadCursor, BadTransition, FileGone, FileNotFound
from jobs.tables import Batch, File
from jobs.types import TERMINAL

log = structlog.get_logger()

T = TypeVar("T")


class Page(list[T], Generic[T]):
    """One page of a list; `has_more` when there are others behind its last entry."""

    has_more: bool = False


def page_of(rows: list[T], limit: int) -> Page[T]:
    """A page out of a query that asked for `limit + 1` rows."""
    page = Page(rows[:limit])
    page.has_more = len(rows) > limit
    return page


async def create(
    session: AsyncSession,
    *,
    file_id: str,
    project: str,
    purpose: str,
    filename: str,
    size: int,
    sha256: str,
    object_key: str,
    expires_us: int | None = None,
) -> File:
    """Record a stored object as a file."""
    file = File(
        id=file_id,
        project=project,
        purpose=purpose,
        filename=filename,
        bytes=size,
        sha256=sha256,
        object_key=object_key,
        created_us=await db_now(session),
        expires_us=expires_us,
    )
    session.add(file)
    await session.flush()
    log.info("file.created", file=file_id, project=project, purpose=purpose, bytes=size)
    return file


async def get(
    session: AsyncSession,
    project: str,
    file_id: str,
    *,
    lock: Literal["to read", "to change"] | None = None,
    param: str = "file_id",
) -> File:
    """The file. Raises FileNotFound (also for another project's file) and FileGone (deleted or expired), which say by
    which `param` the file was named.

    Locked `to read`, it is not deleted until the transaction ends; `to change`, nobody else has it locked.
    """
    file = await session.get(
        File,
        file_id,
        populate_existing=lock is not None,
        with_for_update=None if lock is None else {"read": lock == "to read"},
    )
    if file is None or file.project != project:
        raise FileNotFound(f"no file {file_id!r} in this project", param=param)
    if file.expires_us is not None and file.expires_us <= (file.deleted_us or await db_now(session)):
        raise FileGone(f"file {file_id} has expired; upload it again", param=param)
    if file.deleted_us is not None:
        raise FileGone(f"file {file_id} was deleted", param=param)
    return file


async def list_files(
    session: AsyncSession,
    project: str,
    *,
    purpose: str | None = None,
    after: str | None = None,
    limit: int = 100,
    newest_first: bool = True,
) -> Page[File]:
    """Files that can still be read, from the one that comes after `after`, which may be deleted by now.

    Raises BadCursor when this project never had a file `after`.
    """
    now_us = await db_now(session)
    statement = select(File).where(
        col(File.project) == project,
        col(File.deleted_us).is_(None),
        col(File.expires_us).is_(None) | (col(File.expires_us) > now_us),
    )
    if purpose is not None:
        statement = statement.where(col(File.purpose) == purpose)
    if after is not None:
        cursor = await session.get(File, after)
        if cursor is None or cursor.project != project:
            raise BadCursor(
                f"after is {after!r}, which is no file of this project; use the last id of a page", param="after"
            )
        statement = statement.where(col(File.id) < after if newest_first else col(File.id) > after)
    order = col(File.id).desc() if newest_first else col(File.id)
    return page_of(list(await session.scalars(statement.order_by(order).limit(limit + 1))), limit)


async def expired(session: AsyncSession, limit: int = 100) -> list[File]:
    """Files whose time is over and whose objects are still there, the longest over first.

    A batch that was created in time may still read its input: those files stay until it has ended.
    """
    reading = select(col(Batch.input_file_id)).where(col(Batch.status).not_in(TERMINAL))
    statement = select(File).where(
        col(File.expires_us) <= await db_now(session), col(File.deleted_us).is_(None), col(File.id).not_in(reading)
    )
    return list(await session.scalars(statement.order_by(col(File.expires_us)).limit(limit)))


async def removed(session: AsyncSession, file_id: str) -> None:
    """The object of an expired file is gone."""
    file = await session.get_one(File, file_id, with_for_update=True)
    file.deleted_us = file.deleted_us or await db_now(session)
    log.info("file.expired", file=file_id, project=file.project)


async def delete(session: AsyncSession, project: str, file_id: str) -> File:
    """Mark the file deleted; the caller then deletes its object. Raises FileNotFound, FileGone, and BadTransition while
    a batch that has not ended reads it."""
    file = await get(session, project, file_id, lock="to change")
    using = await session.scalar(
        select(col(Batch.id)).where(col(Batch.input_file_id) == file_id, col(Batch.status).not_in(TERMINAL)).limit(1)
    )
    if using is not None:
        raise BadTransition(
            f"file {file_id} is the input of batch {using}, which has not ended; cancel the batch first",
            param="file_id",
        )
    file.deleted_us = await db_now(session)
    log.info("file.deleted", file=file_id, project=project)
    return file
