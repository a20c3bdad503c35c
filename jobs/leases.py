"""Leases: a placement's claim on a shard, fenced by a growing epoch and a nonce.

Only the database's clock decides when a lease has expired. Expiry alone takes nothing away: an expired lease that
nobody has taken over can be renewed (a broker that was down for a minute must not throw away everyone's work).
Being leased again, given back, abandoned, revoked or closed ends it for good.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator, AsyncIterable, Collection, Iterable, Mapping, Sequence
from contextlib import aclosing

import msgspec
import structlog
from sqlalchemy import and_, func, or_, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from jobs import affinity, ranges, suspects
from jobs.clock import MICROSECONDS, db_now
from jobs.errors import LeaseLost, LeaseUnknown
from jobs.state import starts_lines
from jobs.tables import Batch, LeaseRow, RevokedPlacement, Shard
from jobs.types import Lease, Ranges

log = structlog.get_logger()


class Held(msgspec.Struct, frozen=True, kw_only=True):
    """A lease as its holder names it."""

    placement_id: str
    shard_id: str
    epoch: int
    nonce: str


class Claim(msgspec.Struct, frozen=True, kw_only=True):
    """What a lease, present or past, entitles to: writing parts of its shard under its epoch."""

    project: str
    batch_id: str
    shard_id: str
    epoch: int


async def lease(
    session: AsyncSession, *, placement_id: str, batch_ids: Sequence[str] | AsyncIterable[str], ttl_s: float
) -> Lease | None:
    """The next free shard of the given batches, in the given order; None when there is none. Of a batch's shards one whose
    prefix the placement keeps warm comes first (jobs/affinity.py). No batch is asked for that comes after the one leased.

    Free is: pending, or leased and expired, with an open line that is not reserved. A placement may hold several
    leases. Raises LeaseLost for a revoked placement.
    """
    if await is_revoked(session, placement_id):
        raise LeaseLost(f"placement {placement_id} was revoked; it gets no more work")
    now_us = await db_now(session)
    async with aclosing(_each(batch_ids)) as in_order:
        async for batch_id in in_order:
            batch = await session.get(Batch, batch_id)
            if batch is None or batch.expires_us <= now_us:
                continue
            if not starts_lines(batch.status, batch.ending, batch.paused_us):
                continue
            shard = await _next_shard(session, placement_id, batch_id, now_us)
            if shard is not None:
                return await _grant(session, batch, shard, placement_id=placement_id, ttl_s=ttl_s, now_us=now_us)
    return None


async def _each(batch_ids: Sequence[str] | AsyncIterable[str]) -> AsyncGenerator[str]:
    if isinstance(batch_ids, AsyncIterable):
        async for batch_id in batch_ids:
            yield batch_id
    else:
        for batch_id in batch_ids:
            yield batch_id


async def _next_shard(session: AsyncSession, placement_id: str, batch_id: str, now_us: int) -> Shard | None:
    statement = (
        select(Shard)
        .where(
            col(Shard.batch_id) == batch_id,
            col(Shard.done_lines) + col(Shard.reserved_lines) < col(Shard.lines),
            or_(
                col(Shard.state) == "pending",
                and_(col(Shard.state) == "leased", col(Shard.lease_expires_us) <= now_us),
            ),
        )
        .order_by(affinity.rank(placement_id, batch_id, now_us), col(Shard.number))
        .limit(1)
        .with_for_update(skip_locked=True, of=Shard)
        .execution_options(populate_existing=True)
    )
    found: Shard | None = await session.scalar(statement)
    return found


async def _grant(
    session: AsyncSession, batch: Batch, shard: Shard, *, placement_id: str, ttl_s: float, now_us: int
) -> Lease:
    if shard.state == "leased":
        await end(session, shard, "expired", now_us, blame=True)
    shard.state = "leased"
    shard.epoch += 1
    shard.nonce = secrets.token_hex(16)
    shard.placement_id = placement_id
    shard.lease_expires_us = now_us + int(ttl_s * MICROSECONDS)
    shard.in_flight = []
    session.add(
        LeaseRow(
            shard_id=shard.id,
            epoch=shard.epoch,
            batch_id=batch.id,
            placement_id=placement_id,
            nonce=shard.nonce,
            granted_us=now_us,
        )
    )
    log.info("lease.granted", batch=batch.id, shard=shard.id, epoch=shard.epoch, placement=placement_id)
    return Lease(
        shard_id=shard.id,
        batch_id=batch.id,
        project=batch.project,
        epoch=shard.epoch,
        nonce=shard.nonce,
        ttl_s=ttl_s,
        expires_us=shard.lease_expires_us,
        endpoint=batch.endpoint,
        model=batch.model or "",
        input_key=batch.input_key,
        start=shard.start,
        stop=shard.stop,
        first_idx=shard.first_idx,
        lines=shard.lines,
        done=closed_lines(shard),
        suspects=suspects.from_json(shard.suspects),
    )


async def renew(
    session: AsyncSession,
    *,
    placement_id: str,
    shard_id: str,
    epoch: int,
    nonce: str,
    ttl_s: float,
    in_flight: Iterable[int] = (),
    suspects_told: Mapping[int, int] | None = None,
) -> bool:
    """Extend the lease by `ttl_s` from now and note what its holder is working on.

    False when the lease is lost (superseded, ended, revoked, unknown) or its batch takes no new work (cancelling,
    paused): the holder starts nothing more of it, and may still commit what it has finished. While a cancelled batch
    drains, the lease lives on as long as lines are in flight, so that the batch is not closed under them; of a paused
    one it lives on until its holder names it no more (`end_dropped`), so that nobody repeats what is being finished.
    """
    shard = await _locked(session, shard_id)
    if shard is None or not _is_current(shard, placement_id, epoch, nonce):
        return False
    batch = await session.get_one(Batch, shard.batch_id)
    told = {line: count for line, count in (suspects_told or {}).items() if _in_shard(shard, line)}
    known = suspects.merged(suspects.from_json(shard.suspects), told)
    shard.suspects = suspects.to_json(suspects.undone(known, shard.done))
    shard.in_flight = sorted({i for i in in_flight if _in_shard(shard, i) and not suspects.is_in(i, shard.done)})
    row = await session.get_one(LeaseRow, (shard_id, epoch))
    now_us = await db_now(session)
    if batch.status == "in_progress" and batch.paused_us is not None:
        row.told_us = row.told_us or now_us
    if batch.status == "in_progress" or shard.in_flight:
        shard.lease_expires_us = now_us + int(ttl_s * MICROSECONDS)
    return batch.status == "in_progress" and row.told_us is None


async def lock_held(session: AsyncSession, *, placement_id: str, shard_ids: Collection[str] = ()) -> None:
    """Lock what this placement holds, and the named shards, in the order that everybody keeps: by id.

    Whoever locks several shards, or a shard and the worker's row, does this first: a commit locks the shard, then the row.
    """
    is_held = and_(col(Shard.placement_id) == placement_id, col(Shard.state) == "leased")
    statement = select(col(Shard.id)).where(or_(is_held, col(Shard.id).in_(shard_ids)))
    await session.execute(statement.order_by(col(Shard.id)).with_for_update())


async def end_dropped(session: AsyncSession, *, placement_id: str, named: Collection[tuple[str, int]]) -> int:
    """End the leases (shard, epoch) that this placement was told to start nothing more of and does not name any more:
    what it had is committed, and the shard is free at once, not when the lease would have expired.

    Returns how many ended.
    """
    statement = (
        select(Shard)
        .join(LeaseRow, and_(col(LeaseRow.shard_id) == col(Shard.id), col(LeaseRow.epoch) == col(Shard.epoch)))
        .where(
            col(Shard.placement_id) == placement_id, col(Shard.state) == "leased", col(LeaseRow.told_us).is_not(None)
        )
    )
    told = [each for each in await session.scalars(statement) if (each.id, each.epoch) not in named]
    now_us = await db_now(session)
    ended = 0
    for shard_id, epoch in sorted((each.id, each.epoch) for each in told):
        shard = await _locked(session, shard_id)
        if shard is not None and shard.epoch == epoch and shard.placement_id == placement_id:
            await end(session, shard, "dropped", now_us, blame=False)
            ended += 1
    return ended


async def claims(session: AsyncSession, asked: Sequence[Held]) -> list[Claim | LeaseUnknown | LeaseLost]:
    """What placements may write for leases that they hold or held, in the order asked.

    LeaseUnknown for one that never had this lease, LeaseLost for a placement that was revoked.
    """
    columns = (col(LeaseRow.shard_id), col(LeaseRow.epoch), col(LeaseRow.placement_id), col(LeaseRow.nonce))
    granted = (
        select(*columns, col(Batch.id), col(Batch.project))
        .join(Batch, col(Batch.id) == col(LeaseRow.batch_id))
        .where(
            col(LeaseRow.shard_id).in_({each.shard_id for each in asked}),
            col(LeaseRow.epoch).in_({each.epoch for each in asked}),
        )
    )
    rows = {(row[0], row[1]): row for row in await session.execute(granted)}
    placements = {each.placement_id for each in asked}
    statement = select(col(RevokedPlacement.placement_id)).where(col(RevokedPlacement.placement_id).in_(placements))
    revoked = set(await session.scalars(statement))
    found: list[Claim | LeaseUnknown | LeaseLost] = []
    for each in asked:
        row = rows.get((each.shard_id, each.epoch))
        if row is None or row[2] != each.placement_id or not _same(row[3], each.nonce):
            message = (
                f"placement {each.placement_id} never held epoch {each.epoch} of shard {each.shard_id} with this nonce"
            )
            found.append(LeaseUnknown(message))
        elif each.placement_id in revoked:
            found.append(LeaseLost(f"placement {each.placement_id} was revoked"))
        else:
            found.append(Claim(project=row[5], batch_id=row[4], shard_id=each.shard_id, epoch=each.epoch))
    return found


async def release(session: AsyncSession, *, placement_id: str, shard_id: str | None = None) -> int:
    """Give leases back early: one shard, or all that the placement holds (goodbye). No line is blamed.

    Returns how many leases ended.
    """
    return await _end_all(session, placement_id, "released", blame=False, shard_id=shard_id)


async def abandon(session: AsyncSession, *, placement_id: str, blame: bool = True) -> int:
    """The machine is gone without goodbye: its shards are free at once. Returns how many leases ended.

    Commits that still arrive from it are judged like those of any superseded lease. `blame` False when the cause is
    known to be none of the lines (the market took the machine back).
    """
    return await _end_all(session, placement_id, "abandoned", blame=blame)


async def revoke(session: AsyncSession, *, placement_id: str, blame: bool = True) -> int:
    """The placement is trusted no more: its leases end at once and none of its later commits counts.

    What it committed before stays. Returns how many leases ended.
    """
    if not await is_revoked(session, placement_id):
        session.add(RevokedPlacement(placement_id=placement_id, revoked_us=await db_now(session)))
        log.warning("placement.revoked", placement=placement_id)
    return await _end_all(session, placement_id, "revoked", blame=blame)


async def is_revoked(session: AsyncSession, placement_id: str) -> bool:
    return await session.get(RevokedPlacement, placement_id) is not None


async def live_leases(session: AsyncSession, batch_id: str, now_us: int) -> int:
    """How many shards of the batch are leased and not expired."""
    statement = select(func.count()).where(
        col(Shard.batch_id) == batch_id, col(Shard.state) == "leased", col(Shard.lease_expires_us) > now_us
    )
    return int(await session.scalar(statement) or 0)


async def held(session: AsyncSession, placement_id: str) -> int:
    """How many shards this placement has a lease on, expired or not."""
    statement = select(func.count()).where(col(Shard.placement_id) == placement_id, col(Shard.state) == "leased")
    return int(await session.scalar(statement) or 0)


async def close(session: AsyncSession, batch_id: str, now_us: int) -> None:
    """End all leases of a batch that takes no more answers."""
    statement = select(Shard).where(col(Shard.batch_id) == batch_id, col(Shard.state) == "leased")
    for shard in list(await session.scalars(statement.order_by(col(Shard.id)).with_for_update())):
        await end(session, shard, "closed", now_us, blame=False)


async def end(session: AsyncSession, shard: Shard, reason: str, now_us: int, *, blame: bool) -> None:
    """End the shard's newest lease: it is pending, or done when every line is. `blame` charges the lines in flight."""
    row = await session.get(LeaseRow, (shard.id, shard.epoch))
    if row is not None and row.ended_us is None:
        row.ended_us, row.end_reason = now_us, reason
    known = suspects.from_json(shard.suspects)
    if blame:
        known = suspects.after_death(known, shard.in_flight)
    shard.suspects = suspects.to_json(suspects.undone(known, shard.done))
    shard.state = "done" if shard.done_lines == shard.lines else "pending"
    log.info(
        "lease.ended",
        batch=shard.batch_id,
        shard=shard.id,
        epoch=shard.epoch,
        placement=shard.placement_id,
        reason=reason,
        blamed=len(shard.in_flight) if blame else 0,
    )
    shard.nonce = shard.placement_id = shard.lease_expires_us = None
    shard.in_flight = []


async def _end_all(
    session: AsyncSession, placement_id: str, reason: str, *, blame: bool, shard_id: str | None = None
) -> int:
    statement = select(Shard).where(col(Shard.placement_id) == placement_id, col(Shard.state) == "leased")
    if shard_id is not None:
        statement = statement.where(col(Shard.id) == shard_id)
    now_us = await db_now(session)
    statement = statement.order_by(col(Shard.id)).with_for_update()
    held = list(await session.scalars(statement.execution_options(populate_existing=True)))
    for shard in held:
        await end(session, shard, reason, now_us, blame=blame)
    return len(held)


async def _locked(session: AsyncSession, shard_id: str) -> Shard | None:
    statement = select(Shard).where(col(Shard.id) == shard_id).with_for_update()
    found: Shard | None = await session.scalar(statement.execution_options(populate_existing=True))
    return found


def _is_current(shard: Shard, placement_id: str, epoch: int, nonce: str) -> bool:
    return (
        shard.state == "leased"
        and shard.epoch == epoch
        and shard.placement_id == placement_id
        and _same(shard.nonce or "", nonce)
    )


def _same(ours: str, theirs: str) -> bool:
    """In constant time, so that a nonce cannot be guessed piece by piece."""
    return secrets.compare_digest(ours.encode(), theirs.encode())


def _in_shard(shard: Shard, line: int) -> bool:
    return shard.first_idx <= line < shard.first_idx + shard.lines


def lines_of(shard: Shard) -> Ranges:
    """All lines of the shard as one range."""
    return ((shard.first_idx, shard.first_idx + shard.lines),)


def closed_lines(shard: Shard) -> Ranges:
    """The lines that a worker is not to run: answered, or reserved for the broker's own answer."""
    return ranges.union(shard.done, shard.reserved)


def is_worked_off(shard: Shard) -> bool:
    """Whether no worker has anything to do in this shard (it may still wait for answers of the broker's own)."""
    return shard.done_lines + shard.reserved_lines == shard.lines
