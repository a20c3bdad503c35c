"""The finaliser: output and error files out of committed parts.

`load_final_plan` (a transaction) → `compose` (objects; part rows are read shard by shard) → `finish` (a transaction). It
may die anywhere and start over: object names are a function of the plan, a write of the same bytes is a success, and
rows change only at the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec
import structlog
from sqlalchemy.ext.asyncio import AsyncSession

from jobs import files, ids, outbox, own_parts, ranges, undone
from jobs.clock import MICROSECONDS, db_now
from jobs.commits import as_json
from jobs.composer import Composer
from jobs.errors import BadTransition, CountsDisagree
from jobs.final_plan import FinalPlan, load_final_plan
from jobs.keys import result_key
from jobs.objects import ObjectStore, Stored
from jobs.part_objects import Damaged
from jobs.part_rows import PartRows
from jobs.tables import Batch, Part, Shard
from jobs.transitions import locked, transition
from jobs.types import TERMINAL

__all__ = ["Composed", "DamagedPart", "FinalPlan", "PartRows", "compose", "finish", "load_final_plan"]

log = structlog.get_logger()


class DamagedPart(msgspec.Struct, frozen=True, kw_only=True):
    """A counted part whose object is missing or not what was committed."""

    shard_id: str
    epoch: int
    seq: int
    reason: str


class Composed(msgspec.Struct, frozen=True, kw_only=True):
    """What was written for a plan, or which parts are damaged (then nothing is to be published).

    A file that would be empty is None. `undone` are the lines that expired or were cancelled.
    """

    plan_sha256: str
    version: int
    output: Stored | None = None
    errors: Stored | None = None
    completed: int = 0
    failed: int = 0
    undone: int = 0
    damaged: tuple[DamagedPart, ...] = ()


# --- composing: objects only -----------------------------------------------------------------------------------------


async def compose(store: ObjectStore, plan: FinalPlan, rows: PartRows) -> Composed:
    """Write output and error file. Damaged parts are a result, not an error: `finish` withdraws them.

    Raises CountsDisagree when what was written differs from the plan, ObjectMissing or ObjectCorrupt when the input is
    damaged, ObjectExists when another content has the result's name, BadTransition when the batch changed meanwhile.
    """
    composer = Composer(store, plan, rows)
    try:
        output = errors = None
        if plan.completed:
            output = await store.put_same(_key(plan, "output"), composer.output)
        if plan.completed < plan.total:
            await undone.keep(store, plan)
            errors = await store.put_same(_key(plan, "errors"), composer.errors)
    except Damaged:
        return Composed(plan_sha256=plan.sha256(), version=plan.version, damaged=await _damaged(composer))
    composed = Composed(
        plan_sha256=plan.sha256(),
        version=plan.version,
        output=output,
        errors=errors,
        completed=composer.written["completed"],
        failed=composer.written["failed"],
        undone=composer.written["undone"],
    )
    _check_written(plan, composed)
    return composed


def _key(plan: FinalPlan, kind: Literal["output", "errors"]) -> str:
    return result_key(plan.project, plan.batch_id, kind, plan.sha256())


def _check_written(plan: FinalPlan, composed: Composed) -> None:
    written = (composed.completed, composed.failed, composed.completed + composed.failed + composed.undone)
    if written != (plan.completed, plan.failed, plan.total):
        raise CountsDisagree(
            f"batch {plan.batch_id}: {composed.completed} completed, {composed.failed} failed and {composed.undone} undone "
            f"lines were written; expected {plan.completed} and {plan.failed} of {plan.total}"
        )


async def _damaged(composer: Composer) -> tuple[DamagedPart, ...]:
    """Every damaged part, so that all are redone at once."""
    return tuple(
        DamagedPart(shard_id=part.shard_id, epoch=part.epoch, seq=part.seq, reason=str(damage))
        for part, damage in await composer.damaged()
    )


# --- finishing: one transaction --------------------------------------------------------------------------------------


async def finish(session: AsyncSession, batch_id: str, composed: Composed, *, lifetime_s: int | None = None) -> Batch:
    """Make the composed files the batch's, and end it; or withdraw damaged parts, so that their lines run again.

    The files expire after what the batch asked for, else after `lifetime_s`; None: when they are deleted.
    A batch that has ended stays as it is. Raises BadTransition when the batch changed since the plan was loaded: load
    it again.
    """
    batch = await locked(session, batch_id)
    if batch.status in TERMINAL:
        return batch
    if batch.version != composed.version or batch.ending is None:
        raise BadTransition(f"batch {batch_id} changed while it was composed; compose it again")
    now_us = await db_now(session)
    if composed.damaged:
        await _withdraw(session, batch, composed.damaged, now_us)
        return batch
    lifetime_s = lifetime_s if batch.output_expires_s is None else batch.output_expires_s
    batch.output_file_id = await _file(session, batch, "output", composed.output, lifetime_s)
    batch.error_file_id = await _file(session, batch, "error", composed.errors, lifetime_s)
    batch.expired = composed.undone if batch.ending == "expired" else 0
    batch.cancelled = composed.undone if batch.ending == "cancelled" else 0
    if batch.completed + batch.failed + batch.expired + batch.cancelled != batch.total:
        raise CountsDisagree(f"batch {batch_id}: its counts do not sum to {batch.total}")
    await transition(session, batch, "composed", now_us)
    return batch


async def _file(
    session: AsyncSession, batch: Batch, kind: str, stored: Stored | None, lifetime_s: int | None
) -> str | None:
    if stored is None:
        return None
    file = await files.create(
        session,
        file_id=ids.file_id(),
        project=batch.project,
        purpose="batch_output",
        filename=f"{batch.id}_{kind}.jsonl",
        size=stored.size,
        sha256=stored.sha256,
        object_key=stored.key,
        expires_us=None if lifetime_s is None else await db_now(session) + lifetime_s * MICROSECONDS,
    )
    return file.id


async def _withdraw(session: AsyncSession, batch: Batch, damaged: Sequence[DamagedPart], now_us: int) -> None:
    """Take back what damaged parts answered. Their rows stay, uncounted; their lines are open again."""
    for damage in damaged:
        part = await session.get_one(Part, (damage.shard_id, damage.epoch, damage.seq), with_for_update=True)
        if not part.counted:
            continue
        shard = await session.get_one(Shard, damage.shard_id, with_for_update=True)
        part.counted, part.withdrawn_us = False, now_us
        shard.done = as_json(ranges.difference(shard.done, part.lines))
        shard.done_lines = ranges.count(shard.done)
        shard.state = "pending"
        own_parts.take_back(batch, shard, part)
        batch.completed -= part.completed
        batch.failed -= part.failed
        batch.used_input_tokens -= part.prompt_tokens
        batch.used_output_tokens -= part.completion_tokens
        batch.used_cached_tokens -= part.cached_tokens
        batch.used_reasoning_tokens -= part.reasoning_tokens
        facts = {"shard": part.shard_id, "epoch": part.epoch, "seq": part.seq, "placement": part.placement_id}
        outbox.append(session, batch, "part.withdrawn", facts, now_us)
        log.error("part.withdrawn", batch=batch.id, reason=damage.reason, **facts)
    batch.version += 1
    await session.flush()
    await transition(session, batch, "withdrawn", now_us)
