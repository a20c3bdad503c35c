"""Data keys in the database, each wrapped by a key-encryption key: what every stored secret of others lies under.

A data key belongs to an `owner`, such as `credentials/PROJECT` or `webhooks`. Rotation wraps data keys again, one
transaction each, so that it can stop anywhere and go on; until it is done the earlier KEK still opens the rest.
A KEK wraps nothing before it has opened something of what was wrapped under its name first: another key under the same name
would make secrets that neither of the two opens all of.
Unwrapping may be a network call (KMS): `data_key` is asked before a transaction begins, and remembers what it unwrapped.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import structlog
from sqlalchemy import func, select, update
from sqlalchemy.exc import IntegrityError
from sqlmodel import col
from ulid import ULID

from broker.database import Database
from broker.envelope import Unopenable, close, new_key, open_box
from broker.keyring import Keyring, LocalKek
from broker.vault_tables import DataKeyRow
from jobs.clock import db_now

log = structlog.get_logger()
# One of so many must open for a KEK to be the one of its name: a damaged row must not look like another key.
PROVING_ROWS = 5


@dataclass(frozen=True)
class DataKey:
    """A data key, unwrapped. `id` is written beside what was closed with it."""

    id: str
    plain: bytes = field(repr=False)

    def close(self, plain: bytes, context: str) -> bytes:
        return close(self.plain, plain, context)

    def open(self, box: bytes, context: str) -> bytes:
        """Raises Unopenable."""
        return open_box(self.plain, box, context)


@dataclass(frozen=True, slots=True)
class Wrapping:
    """How many data keys a KEK has wrapped, and whether it is here to open them."""

    kek: str
    data_keys: int
    is_current: bool
    is_here: bool


@dataclass(frozen=True, slots=True)
class Closed:
    """A data key that does not open, and why."""

    data_key: str
    owner: str
    kek: str
    why: str


@dataclass(frozen=True, slots=True)
class Rewrapped:
    """How many data keys a rotation wrapped again, and which it could not open."""

    count: int
    closed: tuple[Closed, ...] = ()


class Vault:
    """The data keys of one database."""

    def __init__(self, database: Database, keyring: Keyring) -> None:
        self.keyring = keyring
        self._database = database
        self._unwrapped: dict[str, DataKey] = {}
        self._proven: set[str] = set()

    async def prove(self) -> None:
        """Every KEK that is here opens one at least of the data keys that were wrapped under its name first.

        Raises Unopenable for one that opens none, KekUnavailable where it cannot be asked. Not to be called in a transaction.
        """
        for name in self.keyring.keys:
            await self._prove(name)

    async def data_key(self, owner: str) -> DataKey:
        """The owner's data key, made at the first use. Not to be called inside a transaction.

        Raises Unopenable when it was wrapped by a KEK that is not here, or would be by one that is another than its name's.
        """
        if owner in self._unwrapped:
            return self._unwrapped[owner]
        row = await self._row(owner) or await self._make(owner)
        plain = await self.keyring.named(row.kek).unwrap(row.wrapped, context(row.id, owner))
        self._unwrapped[owner] = DataKey(row.id, plain)
        return self._unwrapped[owner]

    async def rewrap(self) -> Rewrapped:
        """Wrap with the current KEK what another has wrapped. May be stopped and repeated: what does not open is left as it is.

        Raises Unopenable for a current KEK that is another than its name's.
        """
        current, done, closed = self.keyring.current, 0, list[Closed]()
        await self._prove(current)
        for row in await self._others(current):
            bound = context(row.id, row.owner)
            try:
                plain = await self.keyring.named(row.kek).unwrap(row.wrapped, bound)
            except Unopenable as failure:
                log.error("vault.closed", data_key=row.id, owner=row.owner, kek=row.kek, error=str(failure))
                closed.append(Closed(row.id, row.owner, row.kek, str(failure)))
                continue
            wrapped = await self.keyring.named(current).wrap(plain, bound)
            async with self._database.transaction() as session:
                changed = await session.execute(
                    update(DataKeyRow)
                    .where(col(DataKeyRow.id) == row.id, col(DataKeyRow.kek) == row.kek)
                    .values(kek=current, wrapped=wrapped, wrapped_us=await db_now(session))
                    .execution_options(synchronize_session=False)
                )
            done += int(getattr(changed, "rowcount", 0))
            log.info("vault.rewrapped", data_key=row.id, owner=row.owner, before=row.kek, after=current)
        return Rewrapped(done, tuple(closed))

    async def wrappings(self) -> Sequence[Wrapping]:
        """What is wrapped by what. A KEK that wraps nothing and is not current may leave the settings."""
        async with self._database.transaction() as session:
            grouped = select(col(DataKeyRow.kek), func.count()).group_by(col(DataKeyRow.kek))
            counts = {kek: int(count) for kek, count in await session.execute(grouped)}
        here = self.keyring.keys
        return [
            Wrapping(kek, counts.get(kek, 0), kek == self.keyring.current, kek in here)
            for kek in sorted(counts.keys() | here.keys())
        ]

    async def closed(self) -> Sequence[Closed]:
        """The data keys that do not open: their KEK is not here, or another of that name, or they are damaged. Of a cloud's KEK
        they are asked for until one opens, PROVING_ROWS at most, because each costs a call. Raises KekUnavailable."""
        found = list[Closed]()
        async with self._database.transaction() as session:
            rows = list(await session.scalars(select(DataKeyRow).order_by(col(DataKeyRow.created_us))))
        asked, opened = Counter[str](), set[str]()
        for row in rows:
            kek = self.keyring.keys.get(row.kek)
            is_known = row.kek in opened or asked[row.kek] == PROVING_ROWS
            if kek is not None and not isinstance(kek, LocalKek) and is_known:
                continue
            asked[row.kek] += 1
            try:
                await self.keyring.named(row.kek).unwrap(row.wrapped, context(row.id, row.owner))
                opened.add(row.kek)
            except Unopenable as failure:
                found.append(Closed(row.id, row.owner, row.kek, str(failure)))
        return found

    async def _prove(self, kek: str) -> None:
        if kek in self._proven:
            return
        first = select(DataKeyRow).where(col(DataKeyRow.kek) == kek)
        async with self._database.transaction() as session:
            ordered = first.order_by(col(DataKeyRow.created_us), col(DataKeyRow.id)).limit(PROVING_ROWS)
            rows = list(await session.scalars(ordered))
        if not rows:
            return  # its first data key is yet to come: whatever it is, it is the key of that name
        for row in rows:
            try:
                await self.keyring.named(kek).unwrap(row.wrapped, context(row.id, row.owner))
            except Unopenable as failure:
                log.error("vault.closed", data_key=row.id, owner=row.owner, kek=kek, error=str(failure))
                continue
            self._proven.add(kek)
            return
        which = "the first data key" if len(rows) == 1 else f"any of the first {len(rows)} data keys"
        was = "was" if len(rows) == 1 else "were"
        raise Unopenable(
            f"the key {kek!r} does not open {which} that {was} wrapped under that name: it is another key "
            f"than it was then. Give vault.keys.{kek} its former value; a new key takes a new name, "
            "and then `broker credentials rotate`"
        )

    async def _row(self, owner: str) -> DataKeyRow | None:
        async with self._database.transaction() as session:
            row: DataKeyRow | None = await session.scalar(select(DataKeyRow).where(col(DataKeyRow.owner) == owner))
            return row

    async def _make(self, owner: str) -> DataKeyRow:
        key_id, current = f"datakey_{ULID()}", self.keyring.current
        await self._prove(current)
        wrapped = await self.keyring.named(current).wrap(new_key(), context(key_id, owner))
        try:
            async with self._database.transaction() as session:
                now_us = await db_now(session)
                row = DataKeyRow(
                    id=key_id, owner=owner, kek=current, wrapped=wrapped, created_us=now_us, wrapped_us=now_us
                )
                session.add(row)
        except IntegrityError:
            # another replica, or another task of this one, was faster: its key counts
            found = await self._row(owner)
            if found is None:
                raise
            return found
        log.info("vault.data_key", data_key=key_id, owner=owner, kek=current)
        return row

    async def _others(self, current: str) -> list[DataKeyRow]:
        query = select(DataKeyRow).where(col(DataKeyRow.kek) != current).order_by(col(DataKeyRow.id))
        async with self._database.transaction() as session:
            return list(await session.scalars(query))


async def has_data_keys(database: Database) -> bool:
    """Whether anything lies under a key-encryption key already."""
    async with database.transaction() as session:
        return await session.scalar(select(col(DataKeyRow.id)).limit(1)) is not None


def context(data_key: str, owner: str) -> str:
    """What a wrapped data key is bound to."""
    return f"data key {data_key} of {owner}"
