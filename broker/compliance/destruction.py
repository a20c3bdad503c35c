"""Destroying the keys of what nobody needs any more, and the receipt: ciphertext that is left is unreadable from then on.

A key goes in the transaction that makes its owner unneeded (a file is deleted, a batch's results are), or when the garbage
loop finds what a crash left. The receipt is a leaf of the sealed stream `decisions`: its facts say which key of which owner,
by a hash of the key, was made and destroyed when and why.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec
import structlog
from sqlalchemy import or_, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from broker.compliance.decisions import record
from broker.vault_tables import ObjectKeyRow
from jobs.clock import db_now
from jobs.errors import UploadTooLate
from jobs.tables import AnswerRow, Batch, File, UploadRow
from jobs.types import TERMINAL
from solver.residency import Decision, Reason

log = structlog.get_logger()
AT_ONCE = 500

Why = Literal["deleted", "expired", "erased", "unneeded"]


class Receipt(msgspec.Struct, frozen=True, kw_only=True):
    """Proof of a destruction. `owner` is a file's, an upload's or a batch's id; `key_sha256` names the key."""

    version: int = 1
    kind: Literal["key_destroyed"] = "key_destroyed"
    owner: str
    key_sha256: str
    created_us: int
    destroyed_us: int
    why: Why


async def retire(session: AsyncSession, secret: bytes, owners: Sequence[str], why: Why) -> tuple[str, ...]:
    """Destroy the keys of those owners that no row needs any more, each with its receipt. Which these were.

    To be called after the rows have changed, in their transaction. What no row speaks of goes as `unneeded` alone."""
    gone: list[str] = []
    for start in range(0, len(owners), AT_ONCE):
        page = sorted(set(owners[start : start + AT_ONCE]))
        live = select(ObjectKeyRow).where(col(ObjectKeyRow.owner).in_(page), col(ObjectKeyRow.destroyed_us).is_(None))
        rows = (await session.scalars(live.order_by(col(ObjectKeyRow.owner)).with_for_update())).all()
        needed = await _needed(session, [row.owner for row in rows])
        if why != "unneeded":
            # of what is being uploaded at this moment there is no row yet
            needed |= {row.owner for row in rows} - await _known(session, [row.owner for row in rows])
        for row in rows:
            if row.owner not in needed:
                await _destroy(session, secret, row, why)
                gone.append(row.owner)
    return tuple(gone)


async def require_key(session: AsyncSession, owner: str) -> None:
    """That the key of what was written is there yet, and stays until this transaction ends: to be asked in the one that makes
    the row which needs it. Raises UploadTooLate: no row spoke of an upload under way, so `retire` took it for left over."""
    mine = select(col(ObjectKeyRow.destroyed_us)).where(col(ObjectKeyRow.owner) == owner).with_for_update()
    if any(destroyed_us is not None for destroyed_us in await session.scalars(mine)):
        raise UploadTooLate(
            f"the upload of {owner} took longer than control.orphan_grace_s, so the key of its bytes was destroyed as nobody's; "
            "send it again, large files in parts (/v1/uploads)"
        )


async def _destroy(session: AsyncSession, secret: bytes, row: ObjectKeyRow, why: Why) -> None:
    now_us = await db_now(session)
    receipt = Receipt(
        owner=row.owner, key_sha256=row.key_sha256, created_us=row.created_us, destroyed_us=now_us, why=why
    )
    row.sealed, row.destroyed_us = None, now_us

    def told(seq: int) -> None:
        row.decision = seq
        log.info("key.destroyed", owner=row.owner, why=why, decision=seq)

    await record(
        session,
        secret,
        point="deletion",
        kind="key",
        batch=row.owner,
        rental=None,
        offer_key=None,
        policy_hash="",
        policy=None,
        facts=receipt,
        decision=word_on(receipt),
        at_us=now_us,
        told=told,
    )


def word_on(receipt: Receipt) -> Decision:
    """Pure: what the record says."""
    reason = Reason(
        rule_id="deletion",
        field="key",
        wanted="destroyed",
        found=f"{receipt.key_sha256} {receipt.why}",
        code="key_destroyed",
    )
    return Decision(outcome="allow", reasons=(reason,))


async def _needed(session: AsyncSession, owners: Sequence[str]) -> set[str]:
    """Those whose objects somebody may still read or write."""
    batches = {each for each in owners if each.startswith("batch_")}
    uploads = {each for each in owners if each.startswith("upload_")}
    files = [each for each in owners if each not in batches and each not in uploads]
    there = select(col(File.id)).where(col(File.id).in_(files), col(File.deleted_us).is_(None))
    return set(await session.scalars(there)) | await _uploads(session, uploads) | await _batches(session, batches)


async def _known(session: AsyncSession, owners: Sequence[str]) -> set[str]:
    """Those of which there is a row, whatever it says."""
    found = set[str]()
    for ids in (col(File.id), col(UploadRow.id), col(Batch.id)):
        found |= set(await session.scalars(select(ids).where(ids.in_(owners))))
    return found


async def _uploads(session: AsyncSession, uploads: set[str]) -> set[str]:
    """Those under way, and those whose file is there."""
    rows = await session.execute(
        select(col(UploadRow.id), col(UploadRow.status), col(UploadRow.file_id)).where(col(UploadRow.id).in_(uploads))
    )
    needed, by_file = set[str](), dict[str, str]()
    for upload_id, status, file_id in rows:
        if status == "pending":
            needed.add(upload_id)
        elif file_id is not None:
            by_file[file_id] = upload_id
    there = select(col(File.id)).where(col(File.id).in_(by_file), col(File.deleted_us).is_(None))
    return needed | {by_file[file_id] for file_id in await session.scalars(there)}


async def _batches(session: AsyncSession, batches: set[str]) -> set[str]:
    """Those that have not ended, that show results, or whose answers are remembered for others (jobs/garbage.py)."""
    rows = await session.execute(
        select(col(Batch.id), col(Batch.status), col(Batch.output_file_id), col(Batch.error_file_id)).where(
            col(Batch.id).in_(batches)
        )
    )
    needed, by_file = set[str](), dict[str, str]()
    for batch_id, status, output, errors in rows:
        if status not in TERMINAL:
            needed.add(batch_id)
        by_file |= {file_id: batch_id for file_id in (output, errors) if file_id is not None}
    there = select(col(File.id)).where(col(File.id).in_(by_file), col(File.deleted_us).is_(None))
    needed |= {by_file[file_id] for file_id in await session.scalars(there)}
    remembered = select(col(AnswerRow.batch_id)).where(col(AnswerRow.batch_id).in_(batches)).distinct()
    return needed | set(await session.scalars(remembered))


async def owners_of_file(session: AsyncSession, file: File) -> list[str]:
    """Whose keys a deleted file may have been the last to need: its own, its upload's, its batch's."""
    uploads = await session.scalars(select(col(UploadRow.id)).where(col(UploadRow.file_id) == file.id))
    made = or_(col(Batch.output_file_id) == file.id, col(Batch.error_file_id) == file.id)
    batches = select(col(Batch.id)).where(or_(col(Batch.input_file_id) == file.id, made))
    return [file.id, *uploads, *await session.scalars(batches)]


async def left_over(session: AsyncSession, *, after: str, before_us: int, limit: int = AT_ONCE) -> list[str]:
    """Owners, in order, whose keys were made before and are still there: the next ones to look at."""
    rows = (
        select(col(ObjectKeyRow.owner))
        .where(
            col(ObjectKeyRow.destroyed_us).is_(None),
            col(ObjectKeyRow.owner) > after,
            col(ObjectKeyRow.created_us) < before_us,
        )
        .order_by(col(ObjectKeyRow.owner))
        .limit(limit)
    )
    return list(await session.scalars(rows))


async def of_project(session: AsyncSession, project: str) -> list[str]:
    """All owners of the project whose keys are still there."""
    live = select(col(ObjectKeyRow.owner)).where(
        col(ObjectKeyRow.project) == project, col(ObjectKeyRow.destroyed_us).is_(None)
    )
    return list(await session.scalars(live))


class KeyState(msgspec.Struct, frozen=True, kw_only=True):
    """Whether what `owner` stores is sealed, and can still be read. `receipt` with its leaf, once the key is destroyed."""

    of: Literal["input", "parts and results"]
    owner: str
    state: Literal["not_sealed", "sealed", "destroyed"]
    key_sha256: str | None = None
    created_us: int | None = None
    destroyed_us: int | None = None
    decision: int | None = None


async def key_states(session: AsyncSession, batch: Batch) -> list[KeyState]:
    """The keys of a batch's input and of what it wrote."""
    upload = await session.scalar(select(col(UploadRow.id)).where(col(UploadRow.file_id) == batch.input_file_id))
    found = []
    for of, owner in (("input", upload or batch.input_file_id), ("parts and results", batch.id)):
        row = await session.get(ObjectKeyRow, owner)
        if row is None:
            found.append(KeyState(of=of, owner=owner, state="not_sealed"))  # type: ignore[arg-type]  # one of the two
            continue
        found.append(
            KeyState(
                of=of,  # type: ignore[arg-type]
                owner=owner,
                state="sealed" if row.destroyed_us is None else "destroyed",
                key_sha256=row.key_sha256,
                created_us=row.created_us,
                destroyed_us=row.destroyed_us,
                decision=row.decision,
            )
        )
    return found
