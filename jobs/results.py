"""The finaliser: output and error files out of committed parts.

`load_final_plan` (a transaction) → `compose` (objects only) → `finish` (a transaction). It may die anywhere and start
over: object names are a function of the plan, a write of the same bytes is a success, and rows change only at the end.
Memory holds the parts of one shard at a time.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Literal

import msgspec
import structlog
from sqlalchemy.ext.asyncio import AsyncSession

from jobs import files, ids, outbox, own_parts, ranges
from jobs.clock import db_now
from jobs.commits import as_json
from jobs.errors import BadTransition, CountsDisagree
from jobs.final_plan import FinalPart, FinalPlan, FinalShard, load_final_plan
from jobs.keys import result_key
from jobs.objects import ObjectStore, Stored
from jobs.part_objects import AnswerError, AnswerResponse, Damaged, PartLine, custom_ids, read_part
from jobs.tables import Batch, Part, Shard
from jobs.transitions import locked, transition
from jobs.types import TERMINAL

__all__ = ["Composed", "DamagedPart", "FinalPlan", "compose", "finish", "load_final_plan"]

log = structlog.get_logger()

REMEMBERED_SHARDS = 4  # custom_ids kept in completion order, where parts of several shards interleave
UNDONE = {
    "expired": AnswerError("batch_expired", "This request could not be executed before the batch expired."),
    "cancelled": AnswerError("batch_cancelled", "This request was not executed because the batch was cancelled."),
}


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


class OutputLine(msgspec.Struct):
    """OpenAI's output line, in its order of fields."""

    id: str
    custom_id: str | None
    response: AnswerResponse | None
    error: AnswerError | None


# --- composing: objects only -----------------------------------------------------------------------------------------


async def compose(store: ObjectStore, plan: FinalPlan) -> Composed:
    """Write output and error file. Damaged parts are a result, not an error: `finish` withdraws them.

    Raises CountsDisagree when what was written differs from the plan, ObjectMissing or ObjectCorrupt when the input is
    damaged, ObjectExists when another content has the result's name.
    """
    plan_sha256 = plan.sha256()
    composer = _Composer(store, plan)
    try:
        output = await _write(store, plan, "output", composer, any_lines=plan.completed > 0)
        errors = await _write(store, plan, "errors", composer, any_lines=plan.completed < plan.total)
    except Damaged:
        return Composed(plan_sha256=plan_sha256, version=plan.version, damaged=await _damaged(store, plan))
    composed = Composed(
        plan_sha256=plan_sha256,
        version=plan.version,
        output=output,
        errors=errors,
        completed=composer.written["completed"],
        failed=composer.written["failed"],
        undone=composer.written["undone"],
    )
    _check_written(plan, composed)
    return composed


async def _write(
    store: ObjectStore, plan: FinalPlan, kind: Literal["output", "errors"], composer: _Composer, *, any_lines: bool
) -> Stored | None:
    if not any_lines:
        return None
    key = result_key(plan.project, plan.batch_id, kind, plan.sha256())
    lines: Callable[[], AsyncIterator[bytes]] = composer.output if kind == "output" else composer.errors
    return await store.put_same(key, lines)


def _check_written(plan: FinalPlan, composed: Composed) -> None:
    written = (composed.completed, composed.failed, composed.completed + composed.failed + composed.undone)
    if written != (plan.completed, plan.failed, plan.total):
        raise CountsDisagree(
            f"batch {plan.batch_id}: {composed.completed} completed, {composed.failed} failed and {composed.undone} undone "
            f"lines were written; expected {plan.completed} and {plan.failed} of {plan.total}"
        )


class _Composer:
    """Streams the lines of a plan, from the start whenever asked, and counts what the last stream of each kind held."""

    def __init__(self, store: ObjectStore, plan: FinalPlan) -> None:
        self._store = store
        self._plan = plan
        self._ids: dict[int, Mapping[int, str | None]] = {}
        self.written = {"completed": 0, "failed": 0, "undone": 0}

    async def output(self) -> AsyncIterator[bytes]:
        """Completed lines, as the plan orders them."""
        self.written["completed"] = 0
        async for lines in self._answers(lambda part: part.lines != part.failed):
            completed = [line for line in lines if line.status == "completed"]
            self.written["completed"] += len(completed)
            yield b"".join(map(self._answer, completed))

    async def errors(self) -> AsyncIterator[bytes]:
        """Failed lines as the plan orders them, then the lines without an answer."""
        self.written["failed"] = self.written["undone"] = 0
        async for lines in self._answers(lambda part: bool(part.failed)):
            failed = [line for line in lines if line.status == "failed"]
            self.written["failed"] += len(failed)
            yield b"".join(map(self._answer, failed))
        for shard in self._plan.shards:
            if shard.undone:
                names = await self._ids_of(shard)
                undone = list(ranges.lines_of(shard.undone))
                self.written["undone"] += len(undone)
                yield b"".join(self._unanswered(idx, names[idx]) for idx in undone)

    async def _answers(self, wanted: Callable[[FinalPart], bool]) -> AsyncIterator[list[PartLine]]:
        """Verified lines of the parts that matter, in one list a shard (input order) or a part (completion order)."""
        if self._plan.line_order == "completion":
            shards = {shard.number: shard for shard in self._plan.shards}
            for part in filter(wanted, self._plan.commit_order):
                yield await read_part(self._store, part, await self._ids_of(shards[part.shard_number]))
            return
        for shard in self._plan.shards:
            lines: list[PartLine] = []
            for part in filter(wanted, shard.parts):
                lines += await read_part(self._store, part, await self._ids_of(shard))
            yield sorted(lines, key=lambda line: line.idx)

    async def _ids_of(self, shard: FinalShard) -> Mapping[int, str | None]:
        if shard.number not in self._ids:
            while len(self._ids) >= REMEMBERED_SHARDS:
                del self._ids[next(iter(self._ids))]
            self._ids[shard.number] = await custom_ids(self._store, self._plan.input_key, shard)
        return self._ids[shard.number]

    def _answer(self, line: PartLine) -> bytes:
        return self._encoded(line.idx, line.line.custom_id, line.line.response, line.line.error)

    def _unanswered(self, idx: int, custom_id: str | None) -> bytes:
        return self._encoded(idx, custom_id, None, UNDONE[self._plan.ending])

    def _encoded(
        self, idx: int, custom_id: str | None, response: AnswerResponse | None, error: AnswerError | None
    ) -> bytes:
        # The id is a function of batch and line: composing again gives the same bytes.
        name = hashlib.sha256(f"{self._plan.batch_id} {idx}".encode()).hexdigest()[:32]
        line = OutputLine(id=f"batch_req_{name}", custom_id=custom_id, response=response, error=error)
        return msgspec.json.encode(line) + b"\n"


async def _damaged(store: ObjectStore, plan: FinalPlan) -> tuple[DamagedPart, ...]:
    """Every damaged part, so that all are redone at once."""
    found = []
    for shard in plan.shards:
        names = await custom_ids(store, plan.input_key, shard)
        for part in shard.parts:
            try:
                await read_part(store, part, names)
            except Damaged as damage:
                found.append(DamagedPart(shard_id=part.shard_id, epoch=part.epoch, seq=part.seq, reason=str(damage)))
    return tuple(found)


# --- finishing: one transaction --------------------------------------------------------------------------------------


async def finish(session: AsyncSession, batch_id: str, composed: Composed) -> Batch:
    """Make the composed files the batch's, and end it; or withdraw damaged parts, so that their lines run again.

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
    batch.output_file_id = await _file(session, batch, "output", composed.output)
    batch.error_file_id = await _file(session, batch, "error", composed.errors)
    batch.expired = composed.undone if batch.ending == "expired" else 0
    batch.cancelled = composed.undone if batch.ending == "cancelled" else 0
    if batch.completed + batch.failed + batch.expired + batch.cancelled != batch.total:
        raise CountsDisagree(f"batch {batch_id}: its counts do not sum to {batch.total}")
    await transition(session, batch, "composed", now_us)
    return batch


async def _file(session: AsyncSession, batch: Batch, kind: str, stored: Stored | None) -> str | None:
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
        facts = {"shard": part.shard_id, "epoch": part.epoch, "seq": part.seq, "placement": part.placement_id}
        outbox.append(session, batch, "part.withdrawn", facts, now_us)
        log.error("part.withdrawn", batch=batch.id, reason=damage.reason, **facts)
    batch.version += 1
    await session.flush()
    await transition(session, batch, "withdrawn", now_us)
