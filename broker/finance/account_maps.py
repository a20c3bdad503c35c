"""Versions of the account mapping for the ERP journal. A version is never changed; setting another makes the next one."""

from __future__ import annotations

import re

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from broker.finance.tables import AccountMapRow
from ledger.erp import PERIOD, AccountMap, Sum, journal, parse_map
from ledger.tables import Entry, Posting


async def newest_map(session: AsyncSession) -> tuple[int, AccountMap] | None:
    """The version that holds, and the mapping; None before the first."""
    row = await session.scalar(select(AccountMapRow).order_by(col(AccountMapRow.version).desc()).limit(1))
    return None if row is None else (row.version, parse_map(row.body))


async def unmapped(session: AsyncSession, period: str) -> tuple[str, ...]:
    """The accounts of the month that no rule names: they would go to suspense, and the month must not be closed like that.

    Without any mapping there is no ERP that could miss them.
    """
    newest = await newest_map(session)
    if newest is None or not re.fullmatch(PERIOD, period):
        return ()
    query = (
        select(col(Posting.account), col(Posting.unit), col(Entry.project), func.sum(col(Posting.nano)))
        .join(Entry, col(Entry.id) == col(Posting.entry_id))
        .where(col(Entry.period) == period, col(Posting.account).not_like("Memo:%"))
        .group_by(col(Posting.account), col(Posting.unit), col(Entry.project))
    )
    rows = (await session.execute(query)).all()
    sums = [Sum(account, unit, project, int(nano)) for account, unit, project, nano in rows]
    return journal(sums, newest[1], period=period, version=str(newest[0])).unmapped


async def set_map(session: AsyncSession, body: bytes, *, now_us: int, by: str) -> int:
    """Make `body` the mapping; its version. The same text again stays the version that it is. Raises ledger.erp.BadMap."""
    parse_map(body)
    newest = await session.scalar(select(AccountMapRow).order_by(col(AccountMapRow.version).desc()).limit(1))
    if newest is not None and newest.body == body:
        return newest.version
    version = int(await session.scalar(select(func.coalesce(func.max(col(AccountMapRow.version)), 0))) or 0) + 1
    session.add(AccountMapRow(version=version, body=body, created_us=now_us, created_by=by))
    await session.flush()
    return version
