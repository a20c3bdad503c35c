"""The only clock for leases and expiry: the database's (contract C7)."""

from __future__ import annotations

import time

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

MICROSECONDS = 1_000_000


async def db_now(session: AsyncSession) -> int:
    """Now in microseconds UTC, plus the session's `clock_offset_us` (tests shift time with it; 0 in life).

    PostgreSQL answers with `clock_timestamp()`, so that all replicas agree. SQLite has one process, whose clock it is.
    """
    offset: int = session.info.get("clock_offset_us", 0)
    if session.get_bind().dialect.name == "postgresql":
        seconds_us = await session.scalar(
            text("SELECT CAST(extract(epoch FROM clock_timestamp()) * 1000000 AS bigint)")
        )
        return int(seconds_us) + offset
    return time.time_ns() // 1_000 + offset
