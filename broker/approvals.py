"""Approval by a second person (contract C14): when a batch needs it, who may give it, and what is kept of it.

The rules are pure; the rest reads and writes `broker_approval`. A batch that waits for approval stays in `validating`:
it has no shards, so nothing of it can be held, rented or leased.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal

import structlog
from sqlalchemy import delete, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col
from ulid import ULID

from broker.tables import Approval, Quote
from jobs import outbox
from jobs.tables import Batch

log = structlog.get_logger()
Outcome = Literal["approved", "rejected"]


def needed_because(*, above_nano: int | None, quote_nano: int | None, max_nano: int | None) -> str | None:
    """Why a batch needs approval, or None. What it may cost is its quote; without one its limit; without that anything.

    >>> needed_because(above_nano=10**9, quote_nano=None, max_nano=None)
    'it has neither a quote nor a max_usd, and above $1 a second person approves'
    """
    if above_nano is None:
        return None
    limit = f"and above {_usd(above_nano)} a second person approves"
    if quote_nano is not None:
        return f"it is quoted at {_usd(quote_nano)}, {limit}" if quote_nano > above_nano else None
    if max_nano is not None:
        return f"it has no quote yet and may cost {_usd(max_nano)}, {limit}" if max_nano > above_nano else None
    return f"it has neither a quote nor a max_usd, {limit}"


def objection(*, approver: str, proposer: str) -> str | None:
    """Why this principal may not decide, or None. Keys do not count, people do: two keys of one person are one person."""
    if approver != proposer:
        return None
    return f"{approver!r} proposed it and cannot decide about it, with whatever key; another principal must"


async def approval_of(session: AsyncSession, batch_id: str) -> Approval | None:
    """The newest proposal for a batch, decided or not."""
    query = select(Approval).where(col(Approval.subject) == batch_id).order_by(col(Approval.id).desc()).limit(1)
    found: Approval | None = await session.scalar(query)
    return found


async def told_nano(session: AsyncSession, approval: Approval) -> int | None:
    """What who approved a batch was told that it costs; None: it had no quote, and its limit, or anything, was approved."""
    query = select(col(Quote.cost_nano)).where(
        col(Quote.batch) == approval.subject, col(Quote.created_us) <= approval.created_us
    )
    newest = query.order_by(col(Quote.created_us).desc(), col(Quote.id).desc()).limit(1)
    found: int | None = await session.scalar(newest)
    return found


async def undecided(session: AsyncSession, batch_ids: Collection[str]) -> frozenset[str]:
    """Those of the batches that wait for a second person."""
    query = select(col(Approval.subject)).where(col(Approval.subject).in_(batch_ids), col(Approval.outcome).is_(None))
    return frozenset(await session.scalars(query))


async def propose(session: AsyncSession, batch: Batch, reason: str, now_us: int) -> Approval:
    """Have the batch wait for a second person."""
    approval = Approval(
        id=f"approval_{ULID()}",
        kind="batch",
        subject=batch.id,
        project=batch.project,
        reason=reason,
        proposer=batch.principal,
        created_us=now_us,
    )
    session.add(approval)
    await session.flush()
    log.info("approval.proposed", approval=approval.id, batch=batch.id, proposer=batch.principal)
    return approval


async def decide(
    session: AsyncSession, approval: Approval, batch: Batch, outcome: Outcome, *, by: str, now_us: int
) -> None:
    """Write down who decided what. The caller has asked for `objection` and that nobody decided before."""
    approval.outcome, approval.decided_by, approval.decided_us = outcome, by, now_us
    session.add(approval)
    outbox.append(session, batch, f"batch.{outcome}", {"approval": approval.id}, now_us)
    log.info(f"approval.{outcome}", approval=approval.id, batch=batch.id, by=by, proposer=approval.proposer)


async def withdraw(session: AsyncSession, batch_id: str) -> None:
    """What was proposed is not what the batch is now (its limit was changed): whether it needs approval is asked anew."""
    await session.execute(delete(Approval).where(col(Approval.subject) == batch_id))


def _usd(nano: int) -> str:
    whole, rest = divmod(nano, 10**9)
    return f"${whole}" + (f".{rest:09d}".rstrip("0") if rest else "")
