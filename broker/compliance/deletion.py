"""What was deleted of a batch, as a signed record: the proof that stays when the data is gone (contract C13)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec
from sqlalchemy import or_, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from broker.compliance.decisions import record
from broker.compliance.destruction import key_states
from jobs.tables import Batch, File
from solver.residency import Decision, Reason

What = Literal["input", "output", "errors", "everything"]


class Deleted(msgspec.Struct, frozen=True, kw_only=True):
    """What of a batch is gone: `what`, the file that it was (None: all of the batch), how many objects of it were removed
    from the store (None: they are removed by what comes after), the ids of the keys that were destroyed, and why."""

    what: What
    file: str | None = None
    objects: int | None = None
    keys_destroyed: tuple[str, ...] = ()
    why: Literal["asked", "expired", "project_erased"] = "asked"


def word_on(gone: Deleted) -> Decision:
    """Pure: what the record says."""
    keys = f", keys destroyed: {' '.join(gone.keys_destroyed)}" if gone.keys_destroyed else ""
    reason = Reason(rule_id="deletion", field=gone.what, wanted="gone", found=f"{gone.why}{keys}", code="deleted")
    return Decision(outcome="allow", reasons=(reason,))


async def seal_deletion(session: AsyncSession, secret: bytes, batch: Batch, gone: Deleted, now_us: int) -> None:
    """Keep that it was deleted, in the transaction in which it is; whoever destroys the batch's key names it in `gone`."""
    await record(
        session,
        secret,
        point="deletion",
        kind="deletion",
        batch=batch.id,
        rental=None,
        offer_key=None,
        policy_hash=batch.policy_hash,
        policy=None,
        facts=gone,
        decision=word_on(gone),
        at_us=now_us,
    )


async def seal_file_deletion(
    session: AsyncSession,
    secret: bytes,
    file: File,
    now_us: int,
    *,
    why: Literal["asked", "expired"],
    keys_destroyed: tuple[str, ...] = (),
) -> None:
    """The same for every batch whose input or result the file was."""
    for batch in await _of_file(session, file.id):
        parts: dict[str | None, What] = {
            batch.error_file_id: "errors",
            batch.output_file_id: "output",
            batch.input_file_id: "input",
        }
        # what has expired was removed before its row; what somebody asks to delete is removed when this is committed
        objects = 1 if why == "expired" else None
        gone = Deleted(what=parts[file.id], file=file.id, objects=objects, why=why, keys_destroyed=keys_destroyed)
        await seal_deletion(session, secret, batch, gone, now_us)


async def _of_file(session: AsyncSession, file_id: str) -> Sequence[Batch]:
    statement = select(Batch).where(
        or_(
            col(Batch.input_file_id) == file_id,
            col(Batch.output_file_id) == file_id,
            col(Batch.error_file_id) == file_id,
        )
    )
    return (await session.scalars(statement.order_by(col(Batch.id)))).all()


async def seal_project_erasure(
    session: AsyncSession, secret: bytes, project: str, now_us: int, *, after: str = "", limit: int = 500
) -> str | None:
    """The same for the batches of an erased project, `limit` at a time, when their keys are destroyed. Where to go on, None at
    the end."""
    statement = select(Batch).where(col(Batch.project) == project, col(Batch.id) > after).order_by(col(Batch.id))
    page = (await session.scalars(statement.limit(limit))).all()
    for batch in page:
        keys = tuple(each.owner for each in await key_states(session, batch) if each.state == "destroyed")
        gone = Deleted(what="everything", why="project_erased", keys_destroyed=keys)
        await seal_deletion(session, secret, batch, gone, now_us)
    return page[-1].id if len(page) == limit else None
