"""Uploads: a file that comes in parts, in any order, and becomes one immutable object when all of it is there.

The rules of OpenAI's Uploads: parts of at most 64 MiB, an hour's time, the order is named at the end. An upload's
objects lie under one prefix (`keys.upload_prefix`) and nothing is removed from it while the upload is pending, so two
attempts to complete it cannot take each other's bytes away. What is left over is collected when the time is long over.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import msgspec
import structlog
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from jobs import files
from jobs.clock import MICROSECONDS, db_now
from jobs.errors import BadTransition, BadUpload, UploadNotFound
from jobs.keys import composed_key
from jobs.objects import ObjectStore, Stored
from jobs.streams import Chunks
from jobs.tables import File, UploadPart, UploadRow

log = structlog.get_logger()

MAX_PART_BYTES = 64 * 1024 * 1024
MAX_PARTS = 10_000
LIFETIME_US = 3_600 * MICROSECONDS
# An attempt to complete that began in time may still be writing; after as long again nobody is.
GRACE_US = LIFETIME_US
# The stock clients send a part at most three times; more than three times the file is not a retry.
SENDINGS = 3


class NewUpload(msgspec.Struct, frozen=True, kw_only=True):
    """A request to upload a file in parts. `file_expires_s` is how long the file lives once it is made, or None."""

    id: str
    project: str
    principal: str
    purpose: str
    filename: str
    mime_type: str
    bytes: int
    file_expires_s: int | None


class Composition(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be written: these objects, one after the other, into `key`. `size` is what they sum to."""

    upload_id: str
    key: str
    parts: tuple[str, ...]
    size: int


async def create(session: AsyncSession, new: NewUpload) -> UploadRow:
    """A pending upload, good for an hour."""
    now_us = await db_now(session)
    upload = UploadRow(
        id=new.id,
        project=new.project,
        principal=new.principal,
        purpose=new.purpose,
        filename=new.filename,
        mime_type=new.mime_type,
        bytes=new.bytes,
        status="pending",
        created_us=now_us,
        expires_us=now_us + LIFETIME_US,
        file_expires_s=new.file_expires_s,
    )
    session.add(upload)
    await session.flush()
    log.info("upload.created", upload=new.id, project=new.project, bytes=new.bytes)
    return upload


async def get(session: AsyncSession, project: str, upload_id: str, *, lock: bool = False) -> UploadRow:
    """The upload. Raises UploadNotFound, also for another project's upload."""
    statement = select(UploadRow).where(col(UploadRow.id) == upload_id)
    upload = await session.scalar(statement.with_for_update() if lock else statement)
    if upload is None or upload.project != project:
        raise UploadNotFound(f"no upload {upload_id!r} in this project", param="upload_id")
    return upload


def status_at(upload: UploadRow, now_us: int) -> str:
    """OpenAI's word for it: a pending upload whose hour is over is expired, whether or not anybody wrote that down."""
    return "expired" if upload.status == "pending" and upload.expires_us <= now_us else upload.status


async def open_upload(session: AsyncSession, project: str, upload_id: str) -> UploadRow:
    """The upload, which takes parts. Raises UploadNotFound and BadTransition."""
    upload = await get(session, project, upload_id)
    _require_pending(upload, await db_now(session))
    count, sent = (
        await session.execute(
            select(func.count(), func.coalesce(func.sum(UploadPart.bytes), 0)).where(
                col(UploadPart.upload_id) == upload_id
            )
        )
    ).one()
    if count >= MAX_PARTS or sent >= SENDINGS * upload.bytes:
        raise BadUpload(
            f"upload {upload_id} has {count} parts of {sent} bytes, but announced {upload.bytes} bytes; "
            f"complete it, or create another with larger parts (at most {MAX_PARTS} parts fit)",
            param="data",
        )
    return upload


async def add_part(session: AsyncSession, project: str, upload_id: str, part_id: str, stored: Stored) -> UploadPart:
    """Record a stored part. Raises UploadNotFound and BadTransition; the caller then removes the object."""
    upload = await get(session, project, upload_id, lock=True)
    now_us = await db_now(session)
    _require_pending(upload, now_us)
    part = UploadPart(
        id=part_id,
        upload_id=upload_id,
        object_key=stored.key,
        bytes=stored.size,
        sha256=stored.sha256,
        created_us=now_us,
    )
    session.add(part)
    await session.flush()
    log.info("upload.part", upload=upload_id, part=part_id, bytes=stored.size)
    return part


async def arrange(
    session: AsyncSession, project: str, upload_id: str, part_ids: Sequence[str]
) -> tuple[UploadRow, Composition | None]:
    """The upload with what is to be written to complete it; no composition when it is completed already, in this order.

    Raises UploadNotFound, BadTransition, and BadUpload for parts that are unknown, named twice, or sum to another size
    than was announced.
    """
    upload = await get(session, project, upload_id)
    composition = await _composition(session, upload, part_ids)
    if upload.status == "completed":
        await _require_same(session, upload, composition.key)
        return upload, None
    _require_pending(upload, await db_now(session))
    return upload, composition


async def _composition(session: AsyncSession, upload: UploadRow, part_ids: Sequence[str]) -> Composition:
    rows = await session.scalars(select(UploadPart).where(col(UploadPart.upload_id) == upload.id))
    known = {part.id: part for part in rows}
    unknown = next((part_id for part_id in part_ids if part_id not in known), None)
    if unknown is not None:
        raise BadUpload(f"upload {upload.id} has no part {unknown!r}", param="part_ids")
    if len(set(part_ids)) < len(part_ids):
        raise BadUpload(f"upload {upload.id}: a part is named twice; name each part once, in order", param="part_ids")
    size = sum(known[part_id].bytes for part_id in part_ids)
    if size != upload.bytes:
        raise BadUpload(
            f"the {len(part_ids)} parts have {size} bytes, but upload {upload.id} announced {upload.bytes}; "
            "add what is missing, or create an upload with the right number",
            param="part_ids",
        )
    order_sha256 = hashlib.sha256("\n".join(part_ids).encode()).hexdigest()
    return Composition(
        upload_id=upload.id,
        key=composed_key(upload.project, upload.id, order_sha256),
        parts=tuple(known[part_id].object_key for part_id in part_ids),
        size=size,
    )


async def compose(store: ObjectStore, composition: Composition, md5: str | None) -> Stored:
    """Write the file's object, part after part, a few chunks in memory. Writing it again finds it there.

    Raises BadUpload when `md5` (hex) is not that of the content, and ObjectMissing when a part is gone.
    """
    digest = hashlib.md5(usedforsecurity=False)

    async def content() -> Chunks:
        nonlocal digest
        digest = hashlib.md5(usedforsecurity=False)  # put_same may ask for the content again
        for key in composition.parts:
            async for chunk in store.stream(key):
                if md5 is not None:
                    digest.update(chunk)
                yield chunk

    stored = await store.put_same(composition.key, content)
    if md5 is not None and digest.hexdigest() != md5.lower():
        raise BadUpload(
            f"the content's md5 is {digest.hexdigest()}, not {md5}; check the order of part_ids, or upload again",
            param="md5",
        )
    return stored


async def complete(session: AsyncSession, project: str, upload_id: str, file_id: str, stored: Stored) -> UploadRow:
    """Make the composed object the upload's file. Completing again answers the file that is there.

    Raises UploadNotFound, and BadTransition when it was cancelled meanwhile or completed in another order.
    """
    upload = await get(session, project, upload_id, lock=True)
    if upload.status == "completed":
        await _require_same(session, upload, stored.key)
        return upload
    if upload.status != "pending":  # its hour may have ended while we wrote: it was asked for in time
        raise BadTransition(f"upload {upload_id} is {upload.status}; create another", param="upload_id")
    now_us = await db_now(session)
    lifetime_s = upload.file_expires_s
    file = await files.create(
        session,
        file_id=file_id,
        project=project,
        purpose=upload.purpose,
        filename=upload.filename,
        size=stored.size,
        sha256=stored.sha256,
        object_key=stored.key,
        expires_us=None if lifetime_s is None else now_us + lifetime_s * MICROSECONDS,
    )
    upload.status, upload.file_id = "completed", file.id
    await session.flush()
    log.info("upload.completed", upload=upload_id, file=file.id, bytes=stored.size)
    return upload


async def file_of(session: AsyncSession, upload: UploadRow) -> File | None:
    """The file that the upload became, also when it was deleted since."""
    return None if upload.file_id is None else await session.get_one(File, upload.file_id)


async def cancel(session: AsyncSession, project: str, upload_id: str) -> UploadRow:
    """Take no more parts. Cancelling again changes nothing. Raises UploadNotFound and BadTransition."""
    upload = await get(session, project, upload_id, lock=True)
    if upload.status == "cancelled":
        return upload
    _require_pending(upload, await db_now(session))
    upload.status = "cancelled"
    await session.flush()
    log.info("upload.cancelled", upload=upload_id)
    return upload


async def part_keys(session: AsyncSession, upload_id: str) -> list[str]:
    """Where the parts of an upload lie."""
    return list(await session.scalars(select(col(UploadPart.object_key)).where(col(UploadPart.upload_id) == upload_id)))


async def leftovers(session: AsyncSession, limit: int = 100) -> list[UploadRow]:
    """Uploads that are over for so long that nobody writes to them any more, and that were not collected yet."""
    over_us = await db_now(session) - GRACE_US
    statement = select(UploadRow).where(col(UploadRow.expires_us) <= over_us, col(UploadRow.collected_us).is_(None))
    return list(await session.scalars(statement.order_by(col(UploadRow.expires_us)).limit(limit)))


async def expire(session: AsyncSession, upload_id: str) -> str | None:
    """Write down that a pending upload has expired. Returns the key that its file keeps, if it became one that was not
    deleted: then two attempts to complete it may have written the object anew after its deletion."""
    upload = await session.get_one(UploadRow, upload_id, with_for_update=True)
    if upload.status == "pending":
        upload.status = "expired"
        await session.flush()
        log.info("upload.expired", upload=upload_id)
    file = await file_of(session, upload)
    return None if file is None or file.deleted_us is not None else file.object_key


async def collected(session: AsyncSession, upload_id: str) -> None:
    """Nothing but its file is left of the upload."""
    upload = await session.get_one(UploadRow, upload_id, with_for_update=True)
    upload.collected_us = await db_now(session)
    await session.flush()


def _require_pending(upload: UploadRow, now_us: int) -> None:
    status = status_at(upload, now_us)
    if status != "pending":
        raise BadTransition(
            f"upload {upload.id} is {status}; only a pending upload can be changed, for an hour after its creation",
            param="upload_id",
        )


async def _require_same(session: AsyncSession, upload: UploadRow, key: str) -> None:
    file = await file_of(session, upload)
    if file is None or file.object_key != key:
        raise BadTransition(
            f"upload {upload.id} was completed as file {upload.file_id} with its parts in another order",
            param="part_ids",
        )
