"""The lines' own tags in the database: which lines of a batch carry what a person typed, until somebody erases it."""

from __future__ import annotations

from collections.abc import Mapping

import structlog
from sqlalchemy import delete, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from jobs import ranges
from jobs.commits import as_json
from jobs.errors import BadTransition
from jobs.tables import LineTag
from jobs.transitions import locked
from jobs.types import Ranges

log = structlog.get_logger()


def record(session: AsyncSession, batch_id: str, tags: Mapping[tuple[str, str], Ranges]) -> None:
    """Keep the tags that validation found, in the transaction that begins the batch."""
    session.add_all(
        LineTag(batch_id=batch_id, key=key, value=value, lines=as_json(lines)) for (key, value), lines in tags.items()
    )


async def values(session: AsyncSession, batch_id: str, key: str) -> dict[str, Ranges]:
    """The lines of the batch by their value of one tag. Lines without the tag are in none."""
    statement = select(LineTag).where(col(LineTag.batch_id) == batch_id, col(LineTag.key) == key)
    rows = await session.scalars(statement.order_by(col(LineTag.value)))
    return {row.value: ranges.normal(row.lines) for row in rows}


async def erase(session: AsyncSession, batch_id: str) -> None:
    """Forget the tags of the batch and of all its lines. Erasing twice is erasing once.

    Raises BadTransition while the batch is validated: its lines' tags would be read after this.
    """
    batch = await locked(session, batch_id)
    if batch.status == "validating":
        raise BadTransition(f"batch {batch_id} is being validated; erase its tags when that is done, or cancel it")
    await session.execute(delete(LineTag).where(col(LineTag.batch_id) == batch_id))
    if (batch.wishes or {}).get("tags"):
        batch.wishes = {**(batch.wishes or {}), "tags": {}}
    log.info("batch.tags_erased", batch=batch_id)
