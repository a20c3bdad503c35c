"""Which objects the rows of a database speak of: what a backup without them could not go on with."""

from __future__ import annotations

from dataclasses import dataclass, replace

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from broker.vault_tables import ObjectKeyRow
from jobs.keys import name_of
from jobs.tables import Batch, File, Part
from jobs.types import TERMINAL


@dataclass(frozen=True, slots=True)
class Needed:
    """One object, and the size and sha256 that the rows say it has; `is_sealed`: of what it seals, or of itself."""

    key: str
    size: int
    sha256: str
    why: str
    is_sealed: bool = False


async def needed_objects(session: AsyncSession) -> list[Needed]:
    """Files that were not deleted, and the counted parts of batches that have not ended.

    Parts of ended batches are in their output file; uploads under way are sent again by their client.
    """
    files = await session.execute(
        select(col(File.object_key), col(File.bytes), col(File.sha256), col(File.id)).where(
            col(File.deleted_us).is_(None)
        )
    )
    parts = await session.execute(
        select(col(Part.key), col(Part.size), col(Part.sha256), col(Part.batch_id))
        .join(Batch, col(Batch.id) == col(Part.batch_id))
        .where(col(Part.counted).is_(True), col(Batch.status).not_in(TERMINAL))
    )
    sealed = set(await session.scalars(select(col(ObjectKeyRow.owner))))
    found = [
        *(Needed(key, size, sha256, f"file {file_id}") for key, size, sha256, file_id in files),
        *(Needed(key, size, sha256, f"a part of batch {batch_id}") for key, size, sha256, batch_id in parts),
    ]
    return [replace(each, is_sealed=_owner(each.key) in sealed) for each in found]


def _owner(key: str) -> str | None:
    name = name_of(key)
    return None if name is None else name.owner
