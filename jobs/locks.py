"""Doing one thing at a time across replicas, for what no unique constraint can say."""

from __future__ import annotations

import hashlib

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession


async def serialise(session: AsyncSession, *what: str) -> None:
    """Until this transaction ends, no other that names the same thing goes on from here.

    PostgreSQL: an advisory lock that the transaction holds; what the other one wrote is visible once we have it (READ
    COMMITTED takes a new snapshot with each statement). SQLite has one writer at a time (BEGIN IMMEDIATE).
    """
    if session.get_bind().dialect.name != "postgresql":
        return
    digest = hashlib.sha256("\x00".join(what).encode()).digest()
    number = int.from_bytes(digest[:8], "big", signed=True)
    await session.execute(text("SELECT pg_advisory_xact_lock(:number)"), {"number": number})
