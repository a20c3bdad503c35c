"""Which objects the rows of a database speak of: what a backup without them could not go on with."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from jobs.tables import Batch, File, Part
from jobs.types import TERMINAL


@dataclass(frozen=True, slots=True)
class Needed:
    """One object, and the sha256 that the rows say it has."""

    key: str
    sha256: str
    why: str


async def needed_objects(session: AsyncSession) -> list[Needed]:
    """Files that were not deleted, and the counted parts of batches that have not ended.

    Parts of ended batches are in their output file; uploads under way are sent again by their client.
    """
    files = await session.execute(
        select(col(File.object_key), col(File.sha256), col(File.id)).where(col(File.deleted_us).is_(None))
    )
    parts = await session.execute(
        select(col(Part.key), col(Part.sha256), col(Part.batch_id))
        .join(Batch, col(Batch.id) == col(Part.batch_id))
        .where(col(Part.counted).is_(True), col(Batch.status).not_in(TERMINAL))
    )
    return [
        *(Needed(key, sha256, f"file {file_id}") for key, sha256, file_id in files),
        *(Needed(key, sha256, f"a part of batch {batch_id}") for key, sha256, batch_id in parts),
    ]
