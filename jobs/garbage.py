"""Which objects nobody needs any more, by what the rows say.

An object is only called unneeded when no transaction can come to need it: parts and results of a batch that has ended (commits
to it are refused under its lock, and what it publishes was named by the transaction that ended it), uploads that were
collected, files without a row long after they were written. So the rows may be asked after the store was listed, and what
they say stays true until the object is removed, and after a crash. Keys of a form or of a batch that we do not know are not
ours to judge.

What a batch's end leaves serves its results: parts (for another order, for `lines`, for reuse), names of lines that were not
answered. It goes when output and errors are deleted or have expired. A view is composed anew when it is asked for.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import msgspec
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from jobs.keys import ObjectName, name_of
from jobs.tables import AnswerRow, Batch, File, Part, UploadRow
from jobs.types import TERMINAL

AT_ONCE = 500  # names in one question to the database
# An id as we make them. A bucket may hold others' `marketing/files/report.pdf`, which has the form of a key of ours.
_ID = re.compile(r"(file-|upload_|batch_)[0-9A-HJKMNP-TV-Z]{26}")


class _Rows(msgspec.Struct, frozen=True, kw_only=True):
    """What the rows say of some keys. `ended` are known batches that have ended, `shown` those of them with results."""

    files: frozenset[str]
    parts: frozenset[str]
    remembered: frozenset[str]
    collected: frozenset[str]
    ended: frozenset[str]
    shown: frozenset[str]


async def unneeded(session: AsyncSession, keys: Sequence[str]) -> list[str]:
    """Of the keys of objects, all written long ago, those that no row needs or can come to need."""
    found: list[str] = []
    for start in range(0, len(keys), AT_ONCE):
        named = {key: name for key in keys[start : start + AT_ONCE] if (name := our_name(key)) is not None}
        rows = await _rows(session, named)
        found += [key for key, name in named.items() if not _is_needed(key, name, rows)]
    return found


def our_name(key: str) -> ObjectName | None:
    """What the key names, if it has the form of ours, down to the id in it.

    >>> our_name("marketing/files/report.pdf") is None
    True
    """
    name = name_of(key)
    return name if name is not None and _ID.fullmatch(name.owner) else None


def _is_needed(key: str, name: ObjectName, rows: _Rows) -> bool:
    if key in rows.files:
        return True
    if name.kind == "files":
        return False
    if name.kind == "uploads":
        return name.owner not in rows.collected
    if name.owner not in rows.ended:
        return True
    if name.kind == "parts":
        return key in rows.remembered or (key in rows.parts and name.owner in rows.shown)
    return name.kind == "undone" and name.owner in rows.shown


async def files_at(session: AsyncSession, keys: Sequence[str]) -> frozenset[str]:
    """Of these keys, at most AT_ONCE, those of files that are there."""
    live = select(col(File.object_key)).where(col(File.object_key).in_(keys), col(File.deleted_us).is_(None))
    return frozenset(await session.scalars(live))


async def _rows(session: AsyncSession, named: Mapping[str, ObjectName]) -> _Rows:
    keys = list(named)
    of_uploads = {name.owner for name in named.values() if name.kind == "uploads"}
    of_batches = {name.owner for name in named.values() if name.kind not in ("files", "uploads")}
    parts = [key for key, name in named.items() if name.kind == "parts"]
    # what came after the end is of no result: its row is there for its price alone
    committed = select(col(Part.key)).where(
        col(Part.batch_id).in_(of_batches),
        col(Part.key).in_(parts),
        col(Part.outcome).not_in(("rejected_terminal", "rejected_revoked")),
    )
    remembered = select(col(AnswerRow.part_key)).where(
        col(AnswerRow.batch_id).in_(of_batches), col(AnswerRow.part_key).in_(parts)
    )
    collected = select(col(UploadRow.id)).where(
        col(UploadRow.id).in_(of_uploads), col(UploadRow.collected_us).is_not(None)
    )
    ended = list(
        await session.scalars(select(Batch).where(col(Batch.id).in_(of_batches), col(Batch.status).in_(TERMINAL)))
    )
    return _Rows(
        files=await files_at(session, keys),
        parts=frozenset(await session.scalars(committed)),
        remembered=frozenset(await session.scalars(remembered)),
        collected=frozenset(await session.scalars(collected)),
        ended=frozenset(batch.id for batch in ended),
        shown=await _shown(session, ended),
    )


async def _shown(session: AsyncSession, batches: Sequence[Batch]) -> frozenset[str]:
    """Those whose output or error file can still be read."""
    by_file = {file: batch.id for batch in batches for file in (batch.output_file_id, batch.error_file_id) if file}
    there = await session.scalars(select(col(File.id)).where(col(File.id).in_(by_file), col(File.deleted_us).is_(None)))
    return frozenset(by_file[file] for file in there)
