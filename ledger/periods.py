"""Closing a month: from then on what belongs to it is booked in the first open month after it."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from dataclasses import dataclass

from sqlalchemy import select
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
    if waiting := await in_suspense(session, period):
        told = ", ".join(
            f"{each.account} {in_units(each.nano, each.unit)} of {each.invoice or 'no invoice'}" for each in waiting
        )
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


@dataclass(frozen=True, slots=True)
class Waiting:
    """What lies in suspense of one invoice ("": of none), in nano-`unit`, not 0."""

    account: str
    unit: str
    invoice: str
    nano: int


async def in_suspense(session: AsyncSession, period: str) -> list[Waiting]:
    """What waits for somebody's decision since the month or before, by account, unit and invoice.

    An invoice's money lies there from the month in which it was matched until what is left of it is 0, whenever that is; it is
    never set off against another invoice's. What was put there without an invoice counts for every month; a correction is of
    the invoice of what it corrects.
    """
    query = (
        select(
            col(Entry.key), col(Entry.corrects), col(Entry.period), col(Entry.payload),
            col(Posting.account), col(Posting.unit), col(Posting.nano),
        )
        .join(Posting, col(Posting.entry_id) == col(Entry.id))
        .where(col(Posting.account).startswith(accounts.SUSPENSE))
        .order_by(col(Entry.seq))
    )  # fmt: skip
    sums: dict[tuple[str, str, str], int] = defaultdict(int)
    since: dict[tuple[str, str, str], str] = {}
    invoice_of: dict[str, str] = {}
    for key, corrects, month, payload, account, unit, nano in (await session.execute(query)).all():
        named = json.loads(payload).get("facts", {}).get("invoice")
        invoice = invoice_of[key] = str(named or invoice_of.get(corrects or "", ""))
        of = (account, unit, invoice)
        sums[of] += int(nano)
        since[of] = min(since.get(of, month), month) if invoice else ""
    return [Waiting(*of, nano) for of, nano in sorted(sums.items()) if nano and since[of] <= period]
