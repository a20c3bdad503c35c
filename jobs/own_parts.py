"""Own parts: lines that the broker answers itself, in the same form and by the same rules as a worker's parts.

Three kinds of lines need no engine: invalid ones (they fail with what is wrong with them), requests that this project
had answered before, and repeats of an earlier line of the same batch. Their answers are cut into part objects and
committed like any other, so that counts, results and listings know no special case.

The object is stored before the transaction that makes it count. Its name follows from what is in it, and the row's from
the lines: doing it all again after a crash is the same object and the same row.
"""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Sequence
from typing import Literal

import msgspec
import structlog
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from jobs import commits, ranges
from jobs.commits import Outcome
from jobs.errors import ObjectExists
from jobs.final_plan import OWN_PLACEMENT
from jobs.keys import part_key
from jobs.objects import ObjectStore
from jobs.part_objects import PartLine
from jobs.tables import Batch, Part, Shard
from jobs.transitions import locked
from jobs.types import Commit, LineUsage, Ranges

log = structlog.get_logger()

# No rental has this id, and no lease this epoch (they count from 1): nobody else can commit under them.
PLACEMENT, EPOCH = OWN_PLACEMENT, 0

Kind = Literal["invalid", "reused"]


class Saved(msgspec.Struct, frozen=True, kw_only=True):
    """What answering without an engine spared: the tokens of the first answers, and nano-USD at the quoted price."""

    input_tokens: int = 0
    output_tokens: int = 0
    nano: int = 0


class OwnPart(msgspec.Struct, frozen=True, kw_only=True):
    """A part of the broker's own, ready to be stored and committed.

    `kind` invalid: all of its lines failed; reused: all completed. `seq` is unique among the shard's own parts. `sources`
    are the other batches whose answers these are, each with how many lines.
    """

    batch_id: str
    shard_id: str
    seq: int
    key: str
    size: int
    sha256: str
    lines: Ranges
    kind: Kind
    saved: Saved = Saved()
    sources: tuple[tuple[str, int], ...] = ()


class ShardName(msgspec.Struct, frozen=True, kw_only=True):
    """Which shard a part is cut for. `withdrawn` own parts of it turned out damaged so far: they keep their names."""

    project: str
    batch_id: str
    shard_id: str
    first_idx: int
    lines: int
    withdrawn: int = 0


def cut(
    shard: ShardName,
    answers: Sequence[PartLine],
    kind: Kind,
    saved: Saved | None = None,
    sources: tuple[tuple[str, int], ...] = (),
) -> tuple[OwnPart, bytes]:
    """The part of these answers, which are sorted by line, and the bytes of its object. Pure.

    Own parts of a shard share no line, so the first one tells them apart; a part that is cut anew because its object
    was damaged needs another name, since objects are immutable.
    """
    # no time in the header: a part that is cut twice is the same object
    content = gzip.compress(b"".join(msgspec.json.encode(line) + b"\n" for line in answers), compresslevel=6, mtime=0)
    sha256 = hashlib.sha256(content).hexdigest()
    seq = answers[0].idx - shard.first_idx + shard.withdrawn * shard.lines
    part = OwnPart(
        batch_id=shard.batch_id,
        shard_id=shard.shard_id,
        seq=seq,
        key=part_key(shard.project, shard.batch_id, shard.shard_id, epoch=EPOCH, seq=seq, sha256=sha256),
        size=len(content),
        sha256=sha256,
        lines=ranges.from_lines(line.idx for line in answers),
        kind=kind,
        saved=saved or Saved(),
        sources=sources,
    )
    return part, content


async def store(objects: ObjectStore, part: OwnPart, content: bytes) -> None:
    """Put the object where its commit will say it is. Finding it there is success: its name holds its hash."""
    try:
        await objects.put(part.key, content)
    except ObjectExists:
        log.info("part.found", batch=part.batch_id, key=part.key)


async def commit(session: AsyncSession, part: OwnPart) -> Literal["committed"] | Outcome:
    """Make a stored part count, once: again it is `replayed`. Anything else says why it does not count.

    The same checks as for a worker's commit, without the fence: there is no lease.
    """
    batch = await locked(session, part.batch_id)
    shard = await session.get_one(Shard, part.shard_id, with_for_update=True, populate_existing=True)
    asked = _claim(part)
    situation = await commits.read_situation(session, batch, shard, PLACEMENT, asked)
    situation = msgspec.structs.replace(situation, done=ranges.normal(shard.done))  # the reserved lines are ours
    rejection = (
        commits.replay_problem(situation, asked)
        or commits.terminal_problem(situation, asked)
        or commits.claim_problem(situation, asked)
        or commits.overlap_problem(situation, asked)
    )
    if rejection is not None:
        log.info("part.own_not_counted", batch=batch.id, shard=shard.id, seq=part.seq, outcome=rejection.outcome)
        return rejection.outcome
    _book(batch, asked.counters, 1)
    await commits.count(session, batch, shard, PLACEMENT, asked=asked, outcome="committed", now_us=situation.now_us)
    return "committed"


async def withdrawn_parts(session: AsyncSession, batch_id: str) -> dict[str, int]:
    """By shard: how many of the batch's own parts were withdrawn. Shards without any are not in it."""
    statement = (
        select(col(Part.shard_id), func.count())
        .where(col(Part.batch_id) == batch_id, col(Part.epoch) == EPOCH, col(Part.counted).is_(False))
        .group_by(col(Part.shard_id))
    )
    return {str(shard_id): int(count) for shard_id, count in await session.execute(statement)}


async def give_to_workers(session: AsyncSession, batch_id: str, shard_id: str, lines: Ranges) -> bool:
    """Reserved lines are to be run after all. False while the shard is leased: its holder was not told of these lines,
    and would never do them; they are given away when that lease has ended."""
    await locked(session, batch_id)
    shard = await session.get_one(Shard, shard_id, with_for_update=True, populate_existing=True)
    if shard.state == "leased":
        return False
    commits.reserve(shard, ranges.difference(shard.reserved, lines))
    log.info("lines.given_to_workers", batch=batch_id, shard=shard_id, lines=ranges.count(lines))
    return True


async def follow(session: AsyncSession, batch_id: str, shard_id: str, follows: dict[int, int]) -> None:
    """Let these reserved lines of the shard wait for the lines that they repeat."""
    if not follows:
        return
    await locked(session, batch_id)
    shard = await session.get_one(Shard, shard_id, with_for_update=True, populate_existing=True)
    reserved = set(ranges.lines_of(shard.reserved))
    shard.follows = shard.follows | {str(line): leader for line, leader in follows.items() if line in reserved}


def take_back(batch: Batch, shard: Shard, part: Part) -> None:
    """An own part was withdrawn: its lines wait for the broker again, and what it saved is not saved. A worker's part is
    left alone."""
    if part.placement_id == PLACEMENT:
        commits.reserve(shard, ranges.union(shard.reserved, part.lines))
        _book(batch, part.counters, -1)


def _claim(part: OwnPart) -> Commit:
    """The part as a commit. No engine worked: no attempts, no tokens. What was saved is kept in the counters."""
    status: Literal["failed", "completed"] = "failed" if part.kind == "invalid" else "completed"
    usage = tuple(
        LineUsage(idx=idx, status=status, prompt_tokens=0, completion_tokens=0, cached_tokens=0, attempts=0)
        for idx in ranges.lines_of(part.lines)
    )
    return Commit(
        shard_id=part.shard_id,
        epoch=EPOCH,
        nonce="",
        seq=part.seq,
        key=part.key,
        size=part.size,
        sha256=part.sha256,
        lines=part.lines,
        usage=usage,
        counters={
            part.kind: ranges.count(part.lines),
            "saved_input_tokens": part.saved.input_tokens,
            "saved_output_tokens": part.saved.output_tokens,
            "saved_nano": part.saved.nano,
        },
    )


def _book(batch: Batch, counters: dict[str, int], sign: Literal[1, -1]) -> None:
    batch.invalid += sign * counters.get("invalid", 0)
    batch.reused += sign * counters.get("reused", 0)
    batch.reused_input_tokens += sign * counters["saved_input_tokens"]
    batch.reused_output_tokens += sign * counters["saved_output_tokens"]
    batch.saved_nano += sign * counters["saved_nano"]
