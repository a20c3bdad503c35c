"""Commits: the one transaction that makes a worker's part count (protocol: research/api_worker.md §3.2).

Checks in order, the first that objects answers: replay or conflict, revoked, terminal, claim (lines, usage, key),
fence (epoch and nonce), overlap. Each is a pure function of a `Situation` and the commit. A part of a superseded lease
that touches nothing that is done is accepted: its work is already paid for.

The caller has seen that the object exists with the claimed size, outside the transaction. Its sha256 and content are
verified by the finaliser, which withdraws the part when they are not what was claimed.

Commits that come at the same time are decided together (`commit_together`): what decides about them is read at once, each is
judged as if those before it had been committed, and what follows is written at once.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection, Mapping, Sequence
from typing import Literal

import msgspec
import structlog
from sqlalchemy import select, tuple_
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from jobs import leases, outbox, ranges, suspects
from jobs.clock import db_now
from jobs.errors import LeaseUnknown
from jobs.keys import part_key
from jobs.state import takes_answers
from jobs.tables import Batch, LeaseRow, Part, RevokedPlacement, Shard
from jobs.transitions import all_locked, transition
from jobs.types import Commit, CommitAnswer, LineUsage, Ranges

log = structlog.get_logger()

Outcome = Literal[
    "replayed",
    "rejected_overlap",
    "rejected_conflict",
    "rejected_revoked",
    "rejected_terminal",
    "rejected_invalid",
]
# What was refused and yet answered: it was paid for, and its row keeps what it took.
PAID_FOR: frozenset[Outcome] = frozenset({"rejected_overlap", "rejected_revoked", "rejected_terminal"})


class Rejection(msgspec.Struct, frozen=True, kw_only=True):
    """Why a commit does not count (again). A replay carries the stored answer in `before`."""

    outcome: Outcome
    message: str
    before: str | None = None


class Situation(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that decides about a commit, read under the locks of batch and shard.

    `done` are the lines that this placement cannot answer any more: for a worker the reserved ones are among them.
    `lease_*` are of the epoch that the commit names, None when there was no such lease. `stored_*` are of the part
    with the same (shard, epoch, seq), None when there is none.
    """

    now_us: int
    status: str
    ending: str | None
    expires_us: int
    shard_lines: Ranges
    shard_state: str
    shard_epoch: int
    done: Ranges
    placement_id: str
    is_revoked: bool
    lease_placement: str | None
    lease_nonce: str | None
    expected_key: str
    stored_sha256: str | None
    stored_outcome: str | None


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """A commit by a placement, of a shard of the batch. `told` stands in the log beside what becomes of it."""

    batch_id: str
    placement_id: str
    commit: Commit
    told: dict[str, str] = {}


class Known(msgspec.Struct, kw_only=True):
    """What decides about some commits, by the keys of the rows, read under the locks of batches and shards. `stored` has
    (sha256, outcome) of parts, those of this transaction among them."""

    now_us: int
    shards: Mapping[str, Shard]
    leases: Mapping[tuple[str, int], LeaseRow]
    revoked: frozenset[str]
    stored: dict[tuple[str, int, int], tuple[str, str]]


async def commit(session: AsyncSession, placement_id: str, asked: Commit) -> CommitAnswer:
    """Decide about a part and, if it counts, write everything that follows in the caller's transaction.

    Raises LeaseUnknown when there is no such shard. Every other problem is an outcome of the answer.
    """
    batch_id = (await batches_of(session, [asked.shard_id])).get(asked.shard_id)
    if batch_id is None:
        raise LeaseUnknown(f"no shard {asked.shard_id}")
    [answer] = await commit_together(session, [Asked(batch_id=batch_id, placement_id=placement_id, commit=asked)])
    return answer


async def batches_of(session: AsyncSession, shard_ids: Collection[str]) -> dict[str, str]:
    """The batch of each shard; one that there is not is not in it."""
    rows = await session.execute(select(col(Shard.id), col(Shard.batch_id)).where(col(Shard.id).in_(shard_ids)))
    return {str(row[0]): str(row[1]) for row in rows}


async def commit_together(session: AsyncSession, asked: Sequence[Asked]) -> list[CommitAnswer]:
    """Decide about parts in this order, each as if those before it were committed, and write everything that follows in the
    caller's transaction, which counts all of them or none.

    Raises LeaseUnknown when a shard is not the batch's, BatchNotFound. Every other problem is an outcome of the answer.
    """
    batches = await all_locked(session, {each.batch_id for each in asked})
    known = await _known(session, asked)
    answers = []
    for each in asked:
        with structlog.contextvars.bound_contextvars(**each.told):
            batch = batches[each.batch_id]
            answers.append(await _decided(session, batch, known, each.placement_id, each.commit))
    return answers


async def _decided(session: AsyncSession, batch: Batch, known: Known, placement_id: str, asked: Commit) -> CommitAnswer:
    shard = known.shards.get(asked.shard_id)
    if shard is None or shard.batch_id != batch.id:
        raise LeaseUnknown(f"no shard {asked.shard_id}")
    situation = _situation(batch, shard, known, placement_id, asked)
    rejection = decide(situation, asked)
    if rejection is not None:
        _note_rejection(session, batch, shard, placement_id, asked=asked, rejection=rejection)
        if is_paid_for(situation, asked, rejection):
            session.add(_part_row(batch, placement_id, asked, rejection.outcome, situation.now_us))
            known.stored[asked.shard_id, asked.epoch, asked.seq] = (asked.sha256, rejection.outcome)
        return _answer(situation, shard, asked, rejection.outcome, rejection)
    outcome: Literal["committed", "committed_superseded"] = (
        "committed" if is_current(situation, asked) else "committed_superseded"
    )
    await count(session, batch, shard, placement_id, asked=asked, outcome=outcome, now_us=situation.now_us)
    known.stored[asked.shard_id, asked.epoch, asked.seq] = (asked.sha256, outcome)
    return _answer(situation, shard, asked, outcome)


# --- the checks ------------------------------------------------------------------------------------------------------


def decide(situation: Situation, asked: Commit) -> Rejection | None:
    """The first objection, or None when the part counts."""
    return (
        replay_problem(situation, asked)
        or revoked_problem(situation, asked)
        or terminal_problem(situation, asked)
        or claim_problem(situation, asked)
        or fence_problem(situation, asked)
        or overlap_problem(situation, asked)
    )


def replay_problem(situation: Situation, asked: Commit) -> Rejection | None:
    """The same commit again gets the stored answer; another part under the same name is refused."""
    if situation.stored_sha256 is None:
        return None
    name = f"part {asked.seq} of epoch {asked.epoch}"
    if situation.stored_sha256 != asked.sha256:
        return Rejection(
            outcome="rejected_conflict",
            message=f"{name} is stored with sha256 {situation.stored_sha256}, not {asked.sha256}; use a new seq",
        )
    return Rejection(
        outcome="replayed", message=f"{name} was answered before", before=situation.stored_outcome or "committed"
    )


def revoked_problem(situation: Situation, asked: Commit) -> Rejection | None:
    if not situation.is_revoked:
        return None
    return Rejection(outcome="rejected_revoked", message=f"placement {situation.placement_id} was revoked; stop")


def terminal_problem(situation: Situation, asked: Commit) -> Rejection | None:
    """Closed, ended, or past its deadline by the database's clock, even if no loop has noticed yet."""
    if takes_answers(situation.status, situation.ending) and situation.now_us < situation.expires_us:
        return None
    closed = f", closed as {situation.ending}" if situation.ending else ""
    return Rejection(
        outcome="rejected_terminal",
        message=f"the batch is {situation.status}{closed} and expires at {situation.expires_us} µs; "
        f"it is {situation.now_us} µs now and it takes no more answers",
    )


def claim_problem(situation: Situation, asked: Commit) -> Rejection | None:
    """The claim makes sense in itself: lines of the shard, usage of just these lines, and the key that was given."""
    return _lines_problem(situation, asked) or _usage_problem(asked) or _key_problem(situation, asked)


def fence_problem(situation: Situation, asked: Commit) -> Rejection | None:
    """Only a lease that was really granted may commit, and a superseded one only what nobody has answered since."""
    if (problem := _lease_problem(situation, asked)) is not None:
        return problem
    if asked.epoch < situation.shard_epoch:
        return _overlap(situation, asked, f"epoch {asked.epoch} was superseded by {situation.shard_epoch} and ")
    return None


def _lease_problem(situation: Situation, asked: Commit) -> Rejection | None:
    if situation.lease_nonce is None or situation.lease_placement is None:
        return _invalid(f"epoch {asked.epoch} of shard {asked.shard_id} was never leased")
    if situation.lease_placement != situation.placement_id:
        return _invalid(f"epoch {asked.epoch} of shard {asked.shard_id} was leased to another placement")
    if not secrets.compare_digest(situation.lease_nonce.encode(), asked.nonce.encode()):
        return _invalid(f"the nonce is not the one of epoch {asked.epoch} of shard {asked.shard_id}")
    return None


def overlap_problem(situation: Situation, asked: Commit) -> Rejection | None:
    """No line is answered twice."""
    return _overlap(situation, asked, "")


def _overlap(situation: Situation, asked: Commit, because: str) -> Rejection | None:
    twice = ranges.intersection(asked.lines, situation.done)
    if not twice:
        return None
    return Rejection(
        outcome="rejected_overlap",
        message=f"{because}lines {list(twice)} are already answered or reserved; drop them and cut a new part under a new seq",
    )


def _lines_problem(situation: Situation, asked: Commit) -> Rejection | None:
    if not asked.lines:
        return _invalid("the part holds no line")
    problem = ranges.problem(asked.lines)
    if problem is not None:
        return _invalid(f"lines: {problem}")
    if not ranges.contains(situation.shard_lines, asked.lines):
        return _invalid(f"lines {list(asked.lines)} are not all in the shard's {list(situation.shard_lines)}")
    return None


def _usage_problem(asked: Commit) -> Rejection | None:
    metered = [usage.idx for usage in asked.usage]
    if metered == [*ranges.lines_of(asked.lines)]:
        return None  # as agents send it; what is not in order is looked at
    if len(set(metered)) != len(metered):
        return _invalid("usage names a line twice")
    if ranges.from_lines(metered) != asked.lines:
        return _invalid(f"usage is of lines {list(ranges.from_lines(metered))}, the part holds {list(asked.lines)}")
    return None


def _key_problem(situation: Situation, asked: Commit) -> Rejection | None:
    # A worker may only ever name the one object that it was allowed to write.
    if asked.key != situation.expected_key:
        return _invalid(f"key {asked.key!r} is not this part's key {situation.expected_key!r}")
    return None


def _invalid(message: str) -> Rejection:
    return Rejection(outcome="rejected_invalid", message=message)


def is_paid_for(situation: Situation, asked: Commit, rejection: Rejection) -> bool:
    """Whether what is refused was answered under a lease that was granted: whoever sells the answers charges for them, whether
    or not they came in time."""
    if rejection.outcome not in PAID_FOR:
        return False
    return claim_problem(situation, asked) is None and _lease_problem(situation, asked) is None


def is_current(situation: Situation, asked: Commit) -> bool:
    return situation.shard_state == "leased" and situation.shard_epoch == asked.epoch


# --- reading and writing ---------------------------------------------------------------------------------------------


async def read_situation(
    session: AsyncSession, batch: Batch, shard: Shard, placement_id: str, asked: Commit
) -> Situation:
    """What decides about `asked`. The caller holds the locks of batch and shard."""
    known = await _beside(
        session, {shard.id: shard}, [Asked(batch_id=batch.id, placement_id=placement_id, commit=asked)]
    )
    return _situation(batch, shard, known, placement_id, asked)


async def _known(session: AsyncSession, asked: Sequence[Asked]) -> Known:
    """What decides about `asked`, its shards locked in the order that everybody keeps: by id."""
    statement = (
        select(Shard)
        .where(col(Shard.id).in_(sorted({each.commit.shard_id for each in asked})))
        .order_by(col(Shard.id))
        .with_for_update()
        .execution_options(populate_existing=True)
    )
    return await _beside(session, {shard.id: shard for shard in await session.scalars(statement)}, asked)


async def _beside(session: AsyncSession, shards: Mapping[str, Shard], asked: Sequence[Asked]) -> Known:
    """Leases, parts and revocations beside locked shards, and what time it is once they are locked."""
    epochs = {each.commit.epoch for each in asked}
    granted = select(LeaseRow).where(col(LeaseRow.shard_id).in_(shards), col(LeaseRow.epoch).in_(epochs))
    part = (col(Part.shard_id), col(Part.epoch), col(Part.seq))
    names = {(each.commit.shard_id, each.commit.epoch, each.commit.seq) for each in asked}
    stored = select(*part, col(Part.sha256), col(Part.outcome)).where(tuple_(*part).in_(names))
    placements = {each.placement_id for each in asked}
    revoked = select(col(RevokedPlacement.placement_id)).where(col(RevokedPlacement.placement_id).in_(placements))
    return Known(
        shards=shards,
        leases={(row.shard_id, row.epoch): row for row in await session.scalars(granted)},
        stored={(row[0], row[1], row[2]): (row[3], row[4]) for row in await session.execute(stored)},
        revoked=frozenset(await session.scalars(revoked)),
        now_us=await db_now(session),
    )


def _situation(batch: Batch, shard: Shard, known: Known, placement_id: str, asked: Commit) -> Situation:
    granted = known.leases.get((shard.id, asked.epoch))
    sha256, outcome = known.stored.get((shard.id, asked.epoch, asked.seq), (None, None))
    return Situation(
        now_us=known.now_us,
        status=batch.status,
        ending=batch.ending,
        expires_us=batch.expires_us,
        shard_lines=leases.lines_of(shard),
        shard_state=shard.state,
        shard_epoch=shard.epoch,
        done=leases.closed_lines(shard),
        placement_id=placement_id,
        is_revoked=placement_id in known.revoked,
        lease_placement=granted.placement_id if granted else None,
        lease_nonce=granted.nonce if granted else None,
        expected_key=part_key(batch.project, batch.id, shard.id, epoch=asked.epoch, seq=asked.seq, sha256=asked.sha256),
        stored_sha256=sha256,
        stored_outcome=outcome,
    )


async def count(
    session: AsyncSession, batch: Batch, shard: Shard, placement_id: str, *, asked: Commit, outcome: str, now_us: int
) -> None:
    """Write everything that follows from a part to which nothing objects, under the locks of batch and shard."""
    part = _part_row(batch, placement_id, asked, outcome, now_us)
    session.add(part)
    shard.done = as_json(ranges.union(shard.done, asked.lines))
    shard.done_lines = ranges.count(shard.done)
    shard.in_flight = [line for line in shard.in_flight if not suspects.is_in(line, asked.lines)]
    shard.suspects = suspects.to_json(suspects.undone(suspects.from_json(shard.suspects), shard.done))
    reserve(shard, ranges.difference(shard.reserved, asked.lines))
    if shard.state == "leased" and leases.is_worked_off(shard):
        await leases.end(session, shard, "done", now_us, blame=False)
    elif shard.done_lines == shard.lines:
        shard.state = "done"
    batch.completed += part.completed
    batch.failed += part.failed
    batch.used_input_tokens += part.prompt_tokens
    batch.used_output_tokens += part.completion_tokens
    batch.used_cached_tokens += part.cached_tokens
    batch.used_reasoning_tokens += part.reasoning_tokens
    facts = {
        "shard": shard.id,
        "epoch": asked.epoch,
        "seq": asked.seq,
        "placement": placement_id,
        "lines": ranges.count(asked.lines),
        "outcome": outcome,
    }
    outbox.append(session, batch, "part.committed", facts, now_us)
    log.info("part.committed", batch=batch.id, **facts)
    await transition(session, batch, "answered", now_us)


def _note_rejection(
    session: AsyncSession,
    batch: Batch,
    shard: Shard,
    placement_id: str,
    *,
    asked: Commit,
    rejection: Rejection,
) -> None:
    log.info(
        "part.not_counted",
        batch=batch.id,
        shard=shard.id,
        epoch=asked.epoch,
        seq=asked.seq,
        placement=placement_id,
        outcome=rejection.outcome,
        reason=rejection.message,
    )


def _part_row(batch: Batch, placement_id: str, asked: Commit, outcome: str, now_us: int) -> Part:
    completed = prompt = completion = cached = reasoning = 0
    for line in asked.usage:  # once: a part has hundreds
        completed += line.status == "completed"
        prompt += line.prompt_tokens
        completion += line.completion_tokens
        cached += line.cached_tokens
        reasoning += min(line.reasoning_tokens, line.completion_tokens)
    return Part(
        shard_id=asked.shard_id,
        epoch=asked.epoch,
        seq=asked.seq,
        batch_id=batch.id,
        placement_id=placement_id,
        key=asked.key,
        size=asked.size,
        sha256=asked.sha256,
        lines=as_json(asked.lines),
        usage=msgspec.json.encode(asked.usage),
        # the worker tells them again with the next part that it cuts (workers/agent/parts.py): once is enough
        counters={} if outcome in ("rejected_terminal", "rejected_revoked") else dict(asked.counters),
        outcome=outcome,
        counted=outcome in ("committed", "committed_superseded"),
        committed_us=now_us,
        completed=completed,
        failed=len(asked.usage) - completed,
        prompt_tokens=prompt,
        completion_tokens=completion,
        cached_tokens=cached,
        reasoning_tokens=reasoning,
    )


def _answer(
    situation: Situation,
    shard: Shard,
    asked: Commit,
    outcome: Literal["committed", "committed_superseded"] | Outcome,
    rejection: Rejection | None = None,
) -> CommitAnswer:
    """`done` and `shard_done` are as of after this commit, reserved lines included: they are none of a worker's business.

    The lease is not lost when it is the newest one and either still runs or ended because its shard is done.
    """
    is_done = leases.is_worked_off(shard)
    holds = asked.epoch == shard.epoch and (is_done or shard.state == "leased") and not situation.is_revoked
    return CommitAnswer(
        outcome=outcome,
        done=leases.closed_lines(shard),
        shard_done=is_done,
        lease_lost=not (holds and situation.status == "in_progress" and situation.ending is None),
        outcome_before=rejection.before if rejection else None,
        message=rejection.message if rejection else None,
    )


def reserve(shard: Shard, lines: Ranges) -> None:
    """Let exactly `lines` of the shard be reserved. What an answered or released line followed is forgotten."""
    shard.reserved = as_json(lines)
    shard.reserved_lines = ranges.count(lines)
    if shard.follows:
        shard.follows = {line: leader for line, leader in shard.follows.items() if suspects.is_in(int(line), lines)}


def as_json(pairs: Ranges) -> list[list[int]]:
    return [list(pair) for pair in pairs]


def usage_of(part: Part) -> tuple[LineUsage, ...]:
    """The metered lines of a part row."""
    return msgspec.json.decode(part.usage, type=tuple[LineUsage, ...])
