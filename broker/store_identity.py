"""Which object store belongs to a database: the store holds a name of its own in the object `.store`, the database the same.

Two brokers of one database with folders of their own (a volume each, where a shared one was meant) got on until one was asked
for what the other had stored: it was "missing", and batches failed for it. So a broker only starts on the store that its
database knows. The name travels with the objects: with a copy, a moved folder, a backup. Where it was left behind, the
database's newest files, all of them there, are as good a proof. What this cannot tell are two copies of one store, name included.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import structlog
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col
from ulid import ULID

from broker.agreed import one_at_a_time
from broker.database import Database
from broker.tables import Agreed
from jobs.errors import ObjectExists, ObjectMissing
from jobs.objects import ObjectStore
from jobs.tables import File

log = structlog.get_logger()
MARKER = ".store"  # no project is called so
AGREED = "store"
# Each is a HEAD, and only asked for where the name is missing.
NEWEST = 10


class OtherStore(Exception):
    """The object store is not the one in which the objects of this database lie."""


@dataclass(frozen=True, slots=True)
class Standing:
    """The names that the database and the store hold (None: none yet). `files` are the newest of the database, of those
    `missing` from the store; both are 0 where the names agree or are yet to be given. `is_shared`: other brokers may use the
    database."""

    known: str | None
    found: str | None
    is_shared: bool
    files: int = 0
    missing: int = 0

    @property
    def is_proved(self) -> bool:
        """Whether a store without a name holds what the database speaks of."""
        return self.found is None and self.files > 0 and self.missing == 0

    @property
    def is_free(self) -> bool:
        """Whether nothing is lost by going over to the store: nobody stored anything, and nobody else is there."""
        return self.files == 0 and not self.is_shared


def refusal(standing: Standing, where: str) -> str | None:
    """Why a broker must not work with the store `where`, and how to mend it; None: it may. Pure.

    >>> refusal(Standing(known="A", found="A", is_shared=True), "local folder /b")
    >>> refusal(Standing(known="A", found=None, is_shared=True), "local folder /b")[:75]
    'local folder /b is not the store of this database: it has no name, the data'
    """
    if standing.known in (None, standing.found) or standing.is_proved or standing.is_free:
        return None
    return _words(standing, where)


def _words(standing: Standing, where: str) -> str:
    known, found = standing.known, standing.found
    lacks = f", and {standing.missing} of its {standing.files} newest files are not there" if standing.missing else ""
    named = "it has no name" if found is None else f"it is named {found}"
    return (
        f"{where} is not the store of this database: {named}, the database's objects lie in {known}{lacks}. Name that store in "
        "the section [objects], the same for all brokers of the database (a folder must be one that all of them share); or, if "
        f"this is it, or it is to take its place, copy all objects there and write {known} into its object {MARKER}"
    )


async def standing_of(database: Database, store: ObjectStore) -> Standing:
    """Look, and change nothing. Raises StoreFailed."""
    async with database.transaction() as session:
        row = await session.get(Agreed, AGREED)
    found = await _marker(store)
    known = None if row is None else row.value.decode()
    if known in (None, found):
        return Standing(known, found, database.is_shared)
    async with database.transaction() as session:
        keys = await _newest(session)
    missing = [key for key in keys if not await _is_there(store, key)]
    return Standing(known, found, database.is_shared, len(keys), len(missing))


async def require_same_store(database: Database, store: ObjectStore, where: str) -> None:
    """Give both their common name where they have none yet. Not inside a transaction.

    Of brokers that start together the first one's store is the database's. Raises OtherStore and StoreFailed.
    """
    standing = await standing_of(database, store)
    refused = refusal(standing, where)
    if refused:
        raise OtherStore(refused)
    if standing.known is not None and standing.known == standing.found:
        return
    kept = standing.known if standing.is_proved else None
    named = standing.found or await _named(store, kept or str(ULID()))
    async with database.transaction() as session:
        await one_at_a_time(session)
        agreed = await _agreed(session, named, instead=standing.known if standing.is_free else None)
    if agreed != named:
        raise OtherStore(_words(Standing(agreed, named, database.is_shared), where))
    log.info("objects.named", name=named, store=where)


async def _agreed(session: AsyncSession, named: str, *, instead: str | None) -> str:
    """What the database has as the store's name: `named`, where it had none, or the one `instead` of which it shall be."""
    row = await session.get(Agreed, AGREED)
    if row is None:
        session.add(Agreed(name=AGREED, value=named.encode()))
        return named
    if instead is not None and row.value.decode() == instead:
        row.value = named.encode()
    return row.value.decode()


async def _newest(session: AsyncSession) -> Sequence[str]:
    """The objects of the newest files that were not deleted."""
    live = select(col(File.object_key)).where(col(File.deleted_us).is_(None))
    newest = live.order_by(col(File.created_us).desc(), col(File.id)).limit(NEWEST)
    return (await session.scalars(newest)).all()


async def _marker(store: ObjectStore) -> str | None:
    try:
        # a person may have written it, with a line's end
        return (await store.get(MARKER)).decode(errors="replace").strip()
    except ObjectMissing:
        return None


async def _named(store: ObjectStore, name: str) -> str:
    """The store's name: `name`, or what another broker gave it meanwhile."""
    try:
        await store.put(MARKER, name.encode())
    except ObjectExists:
        return (await store.get(MARKER)).decode(errors="replace").strip()
    return name


async def _is_there(store: ObjectStore, key: str) -> bool:
    try:
        await store.size(key)
    except ObjectMissing:
        return False
    return True
