"""Closing a month: from then on what belongs to it is booked in the first open month after it."""

from __future__ import annotations

import json
import re
from collections import defaultdict

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from ledger import accounts
from ledger.book import lock, post
from ledger.errors import MalformedEvent, PeriodClosed
from ledger.event import Dims, Event, Exists, Line, Posted
from ledger.money import in_units
from ledger.rules import period_of
from ledger.standing import closed_periods
from ledger.tables import Entry, Posting

_PERIOD = re.compile(r"[0-9]{4}-(?:0[1-9]|1[0-2])")


async def close(session: AsyncSession, period: str, *, now_us: int, actor: str) -> Posted | Exists:
    """Close the month. Raises MalformedEvent when it has not ended or money lies in suspense, PeriodClosed when it is closed."""
    await lock(session)
    if not _PERIOD.fullmatch(period) or period >= period_of(now_us):
        raise MalformedEvent(f"period {period!r} is no month (YYYY-MM, UTC) that has ended; it cannot be closed")
    if period in await closed_periods(session):
        raise PeriodClosed(f"{period} is closed already")
    if open_sums := await in_suspense(session, period):
        told = ", ".join(f"{account} {in_units(nano, unit)}" for account, unit, nano in open_sums)
        raise MalformedEvent(
            f"{period} cannot be closed while money lies in suspense: {told}; `broker ledger exceptions list` says what it waits "
            "for (what is disputed, too, stays there until it is accepted)"
        )
    event = Event(
        key=f"period.close:{period}",
        kind="period.close",
        occurred_at_us=now_us,
        actor=actor,
        dims=Dims(),
        lines=(Line(account=accounts.closed(period), nano=1), Line(account=accounts.CONTRA, nano=-1)),
    )
    return await post(session, event, recorded_at_us=now_us)


async def in_suspense(session: AsyncSession, period: str) -> list[tuple[str, str, int]]:
    """What waits for somebody's decision since the month or before: account, unit, nano.

    An invoice's money lies there from the month in which it was matched until what is left of it is 0, whenever that is. What was
    put there without an invoice counts for every month.
    """
    query = (
        select(col(Entry.period), col(Entry.payload), col(Posting.account), col(Posting.unit), col(Posting.nano))
        .join(Posting, col(Posting.entry_id) == col(Entry.id))
        .where(col(Posting.account).startswith(accounts.SUSPENSE))
    )
    if not await _anything_in_suspense(session):
        return []
    sums: dict[tuple[str, str, str], int] = defaultdict(int)
    since: dict[tuple[str, str, str], str] = {}
    for month, payload, account, unit, nano in (await session.execute(query)).all():
        invoice = str(json.loads(payload).get("facts", {}).get("invoice") or "")
        key = (account, unit, invoice)
        sums[key] += int(nano)
        since[key] = min(since.get(key, month), month) if invoice else ""
    found: dict[tuple[str, str], int] = defaultdict(int)
    for (account, unit, invoice), nano in sums.items():
        if since[account, unit, invoice] <= period:
            found[account, unit] += nano
    return [(account, unit, nano) for (account, unit), nano in sorted(found.items()) if nano]


async def _anything_in_suspense(session: AsyncSession) -> bool:
    query = (
        select(col(Posting.account))
        .where(col(Posting.account).startswith(accounts.SUSPENSE))
        .group_by(col(Posting.account), col(Posting.unit))
        .having(func.sum(col(Posting.nano)) != 0)
        .limit(1)
    )
    return (await session.execute(query)).first() is not None
