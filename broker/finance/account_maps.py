"""Versions of the account mapping for the ERP journal. A version is never changed; setting another makes the next one."""

from __future__ import annotations

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from broker.finance.tables import AccountMapRow
from ledger.erp import AccountMap, parse_map


async def newest_map(session: AsyncSession) -> tuple[int, AccountMap] | None:
    """The version that holds, and the mapping; None before the first."""
    row = await session.scalar(select(AccountMapRow).order_by(col(AccountMapRow.version).desc()).limit(1))
    return None if row is None else (row.version, parse_map(row.body))


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
