"""What brokers that share a database must have in common. The first of them makes it, the others read it."""

from __future__ import annotations

from collections.abc import Callable

from sqlalchemy import text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from broker.database import Database
from broker.tables import Agreed
from broker.vault import Vault

START_LOCK = 0x62726B03


async def one_at_a_time(session: AsyncSession) -> None:
    """Brokers that start together go on one after the other, each when the transaction of the one before has ended.

    A lock of its own: the leader's term is share-locked by one transaction or another at any time, and PostgreSQL lets
    whoever wants that row for itself wait for ever.
    """
    if session.get_bind().dialect.name == "postgresql":
        await session.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": START_LOCK})


async def agreed(session: AsyncSession, name: str, make: Callable[[], bytes]) -> bytes:
    """The value of this name in a PostgreSQL database; `make` gives it the first time. Brokers that start together wait
    for the first one's transaction and get its value."""
    found = await session.get(Agreed, name)
    if found is None:
        fresh = insert(Agreed).values(name=name, value=make()).on_conflict_do_nothing()
        await session.execute(fresh)
        found = await session.get_one(Agreed, name)
    return found.value


async def agreed_secret(database: Database, vault: Vault, name: str, make: Callable[[], bytes]) -> bytes:
    """The secret of this name, which lies in a PostgreSQL database under the vault's key `agreed`: who reads the database, or a
    copy of it, cannot sign as we do. One that an earlier version left there in clear is kept, and its row removed.

    Raises Unopenable without the key-encryption key.
    """
    key = await vault.data_key("agreed")
    where, sealed = f"what brokers agreed on as {name}", f"{name}.sealed"
    async with database.transaction() as session:
        await one_at_a_time(session)
        clear = await session.get(Agreed, name)
        plain = make() if clear is None else clear.value
        box = await agreed(session, sealed, lambda: key.close(plain, where))
        if clear is not None:
            await session.delete(clear)
    return key.open(box, where)
