"""What brokers that share a database must have in common. The first of them makes it, the others read it."""

from __future__ import annotations

from collections.abc import Callable

from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from broker.tables import Agreed


async def agreed(session: AsyncSession, name: str, make: Callable[[], bytes]) -> bytes:
    """The value of this name in a PostgreSQL database; `make` gives it the first time. Brokers that start together wait
    for the first one's transaction and get its value."""
    found = await session.get(Agreed, name)
    if found is None:
        fresh = insert(Agreed).values(name=name, value=make()).on_conflict_do_nothing()
        await session.execute(fresh)
        found = await session.get_one(Agreed, name)
    return found.value
