"""What became of each line of a batch, a page at a time.

Rows say which lines are done, which failed, and what they used; only for the lines of the page are part objects read,
which say under which custom_id and with which error. Only a search for a custom_id reads more.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import msgspec
import structlog
from sqlalchemy import ColumnElement, Select, exists, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from jobs import ranges, suspects, undone
from jobs.answer_errors import error_of
from jobs.commits import usage_of
from jobs.composer import UNDONE
from jobs.errors import ObjectMissing
from jobs.final_plan import OWN_PLACEMENT, FinalPart, FinalShard
from jobs.objects import ObjectStore
from jobs.part_objects import AnswerError, AskedIds, Damaged, custom_ids, read_part
from jobs.part_rows import Transaction, final_part
from jobs.tables import Batch, Part, Shard
from jobs.types import TERMINAL, LineUsage

log = structlog.get_logger()

LineState = Literal["completed", "failed", "invalid", "expired", "cancelled", "pending", "in_flight"]


class Line(msgspec.Struct, kw_only=True):
    """One line (`idx` from 0). `usage` and `placement` are of its answer; `custom_id`, `error` and `status_code` (the
    engine's) are filled from objects."""

    idx: int
    status: LineState
    attempts: int
    placement: str | None
    usage: LineUsage | None = None
    custom_id: str | None = None
    error: AnswerError | None = None
    status_code: int | None = None


class _Found(msgspec.Struct):
    """Lines of one shard that belong to the page, and the parts that answer some of them."""

    shard: FinalShard
    lines: list[Line]
    parts: list[FinalPart]


async def list_lines(
    store: ObjectStore,
    transaction: Transaction,
    batch: Batch,
    *,
    status: LineState | None = None,
    custom_id: str | None = None,
    after: int = 0,
    limit: int = 100,
) -> tuple[list[Line], bool]:
    """The lines from index `after` on, with one status or any, under one custom_id or any, and whether there are more.

    There is no index of custom_ids: looking for one reads the input from `after` on once, a shard at a time in memory, and
    to its end even when the line is found, since invalid lines may repeat a custom_id. When the input was deleted, the
    parts are read instead.

    Raises ObjectCorrupt when the input is not the one that was validated, and ObjectMissing when it is gone although
    the batch has not ended.
    """
    found: list[_Found] = []
    left = limit + 1  # one more tells whether there are more
    while left > 0:
        async with transaction() as session:
            shard = await _next_shard(session, batch, status, after)
            if shard is None:
                break
            parts = list(await session.scalars(_parts(shard, status)))
        here = _Found(_final_shard(shard), [], [final_part(part, shard.number) for part in parts])
        named = None if custom_id is None else await _named(store, batch, here, custom_id)
        if named is None or named:
            here.lines = [
                line
                for line in _lines(batch, shard, parts)
                if line.idx >= after and status in (None, line.status) and (named is None or line.idx in named)
            ][:left]
            found.append(here)
            left -= len(here.lines)
        after = shard.first_idx + shard.lines
    lines = [line for each in found for line in each.lines]
    shown = {line.idx for line in lines[:limit]}
    for each in found:
        await _fill(store, batch, each, [line for line in each.lines if line.idx in shown])
    return lines[:limit], len(lines) > limit


# --- from rows -------------------------------------------------------------------------------------------------------


async def _next_shard(session: AsyncSession, batch: Batch, status: LineState | None, after: int) -> Shard | None:
    """The first shard from line `after` on in which a line may have the status."""
    may = _may_hold(batch, status)
    if may is None:
        return None
    statement = select(Shard).where(
        col(Shard.batch_id) == batch.id, col(Shard.first_idx) + col(Shard.lines) > after, *may
    )
    found: Shard | None = await session.scalar(statement.order_by(col(Shard.number)).limit(1))
    return found


def _may_hold(batch: Batch, status: LineState | None) -> list[ColumnElement[bool]] | None:
    """What of a shard's row says that it may hold lines of a status; None when no line of this batch has it."""
    is_open = col(Shard.done_lines) < col(Shard.lines)
    has_ended = batch.status in TERMINAL
    match status:
        case None:
            return []
        case "completed" | "failed" | "invalid":
            return [exists().where(col(Part.shard_id) == col(Shard.id), *_answered(status))]
        case "expired" | "cancelled":
            return [is_open] if has_ended and batch.ending == status else None
        case "pending":
            return None if has_ended else [is_open]
        case "in_flight":
            return None if has_ended else [is_open, col(Shard.state) == "leased"]


def _parts(shard: Shard, status: LineState | None) -> Select[Part]:
    return (
        select(Part).where(col(Part.shard_id) == shard.id, *_answered(status)).order_by(col(Part.epoch), col(Part.seq))
    )


def _answered(status: LineState | None) -> list[ColumnElement[bool]]:
    """Which parts answer lines with this status. The broker's own parts fail nothing but invalid lines."""
    counted = col(Part.counted).is_(True)
    match status:
        case "completed":
            return [counted, col(Part.completed) > 0]
        case "failed":
            return [counted, col(Part.failed) > 0, col(Part.placement_id) != OWN_PLACEMENT]
        case "invalid":
            return [counted, col(Part.failed) > 0, col(Part.placement_id) == OWN_PLACEMENT]
    return [counted]


def _lines(batch: Batch, shard: Shard, parts: Sequence[Part]) -> Iterator[Line]:
    """The lines of a shard in order. Pure. Answered lines whose part was not asked for are left out."""
    answered = {usage.idx: _answered_line(part, usage) for part in parts for usage in usage_of(part)}
    tried = suspects.from_json(shard.suspects)
    for idx in range(shard.first_idx, shard.first_idx + shard.lines):
        if idx in answered:
            yield answered[idx]
        elif not suspects.is_in(idx, shard.done):
            yield _open_line(batch, shard, idx, tried)


def _answered_line(part: Part, usage: LineUsage) -> Line:
    status: LineState = usage.status
    if status == "failed" and part.placement_id == OWN_PLACEMENT:
        status = "invalid"
    return Line(idx=usage.idx, status=status, attempts=usage.attempts, placement=part.placement_id, usage=usage)


def _open_line(batch: Batch, shard: Shard, idx: int, tried: Mapping[int, int]) -> Line:
    attempts = tried.get(idx, 0)
    if batch.status in TERMINAL:
        ending: Literal["expired", "cancelled"] = "expired" if batch.ending == "expired" else "cancelled"
        return Line(idx=idx, status=ending, attempts=attempts, placement=None, error=UNDONE[ending])
    if shard.state == "leased" and idx in shard.in_flight:
        return Line(idx=idx, status="in_flight", attempts=attempts, placement=shard.placement_id)
    return Line(idx=idx, status="pending", attempts=attempts, placement=None)


def _final_shard(shard: Shard) -> FinalShard:
    return FinalShard(
        id=shard.id,
        number=shard.number,
        first_idx=shard.first_idx,
        lines=shard.lines,
        start=shard.start,
        stop=shard.stop,
        sha256=shard.sha256,
        done=ranges.normal(shard.done),
        failed=0,
    )


# --- from objects ----------------------------------------------------------------------------------------------------


async def _named(store: ObjectStore, batch: Batch, found: _Found, custom_id: str) -> set[int]:
    """Which lines of the shard have this custom_id."""
    try:
        names = await custom_ids(store, batch.input_key, found.shard)
    except ObjectMissing:
        if batch.status not in TERMINAL:
            raise
        names = await _kept_names(store, batch, found)
    return {idx for idx, name in names.items() if name == custom_id}


async def _kept_names(store: ObjectStore, batch: Batch, found: _Found) -> dict[int, str | None]:
    """The names that the results of an ended batch still know; lines of a damaged part have none."""
    names: dict[int, str | None] = {}
    if found.shard.undone:
        names |= await undone.names(store, batch.project, batch.id, batch.input_key, found.shard)
    for part in found.parts:
        try:
            names |= {answer.idx: answer.line.custom_id for answer in await read_part(store, part, None)}
        except Damaged as damage:
            log.warning("part.unreadable", batch=batch.id, part=part.key, reason=str(damage))
    return names


async def _fill(store: ObjectStore, batch: Batch, found: _Found, lines: Sequence[Line]) -> None:
    """Add what only objects know, to the lines of one shard that are shown."""
    if not lines:
        return
    names: Mapping[int, str | None] = {}
    asked: AskedIds | None = None
    if batch.status not in TERMINAL:
        names = await custom_ids(store, batch.input_key, found.shard)
        asked = AskedIds.of(found.shard.first_idx, names)
    elif any(line.usage is None for line in lines):
        names = await undone.names(store, batch.project, batch.id, batch.input_key, found.shard)
    by_idx = {line.idx: line for line in lines}
    for idx, line in by_idx.items():
        line.custom_id = names.get(idx)
    for part in found.parts:
        if any(idx in by_idx for idx in ranges.lines_of(part.lines)):
            await _fill_from_part(store, part, asked, by_idx)


async def _fill_from_part(
    store: ObjectStore, part: FinalPart, asked: AskedIds | None, lines: Mapping[int, Line]
) -> None:
    try:
        answers = await read_part(store, part, asked)
    except Damaged as damage:
        for idx in ranges.lines_of(part.lines):
            if idx in lines:
                lines[idx].error = AnswerError("part_damaged", f"its answer cannot be read back: {damage}")
        return
    for answer in answers:
        line = lines.get(answer.idx)
        if line is not None:
            line.custom_id = answer.line.custom_id
            line.error = error_of(answer.line) if answer.status == "failed" else None
            line.status_code = answer.line.response.status_code if answer.line.response else None
