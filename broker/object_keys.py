"""The keys that stored objects are sealed with: one for each uploaded file, upload in parts and batch.

A key is made before the first object of its owner is written, and the row alone says whether an owner's objects are sealed:
owners from before this was built, or while it was off, have no row, and theirs are read as they are. The key lies in the
database under a data key of its project, and that under the key-encryption key (`broker/vault.py`): so a batch costs no call
to a KMS, and changing the KEK wraps one key a project again. A key that is destroyed is gone from the row
(`broker/compliance/destruction.py`); what it sealed is from then on as good as missing.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from broker.database import Database
from broker.envelope import Unopenable, new_key
from broker.vault import DataKey, Vault
from broker.vault_tables import ObjectKeyRow
from jobs.clock import db_now
from jobs.errors import KeyDestroyed, KeyUnreadable
from jobs.keys import ObjectName
from workers.agent.sealing import hkdf

# For so long another broker may go on reading what this one has destroyed the key of.
REMEMBERED_S = 30.0
MOST_REMEMBERED = 10_000
_PART = re.compile(r"(.+)/([0-9]{1,19})-([0-9]{1,19})-[^/]+", re.ASCII)


@dataclass(frozen=True, slots=True)
class ObjectSecret:
    """What one object is sealed with: `context` says which it is, and goes into every segment."""

    key: bytes = field(repr=False)
    context: str


@dataclass(frozen=True, slots=True)
class ProjectKey:
    """A project's data key, at hand: keys of its owners may be added inside a transaction."""

    project: str
    data_key: DataKey

    async def add(self, session: AsyncSession, owner: str) -> None:
        """Make the key of a new owner, whose objects will be sealed with it."""
        key = new_key()
        row = ObjectKeyRow(
            owner=owner,
            project=self.project,
            data_key=self.data_key.id,
            sealed=self.data_key.close(key, _where(self.project, owner)),
            key_sha256=name_of_key(key),
            created_us=await db_now(session),
        )
        session.add(row)


class ObjectKeys:
    """The keys of one database's objects. `seals_new`: whether new owners get one (setting `objects.encryption`)."""

    def __init__(self, database: Database, vault: Vault, *, seals_new: bool = True) -> None:
        self._database = database
        self._vault = vault
        self._seals_new = seals_new
        # the key; None: not sealed; "": destroyed. Until when it is believed, on the monotonic clock
        self._known: OrderedDict[str, tuple[bytes | None, float]] = OrderedDict()

    async def of_project(self, project: str) -> ProjectKey | None:
        """To add keys with; None where new ones are not sealed. May ask a KMS: not inside a transaction. Raises KeyUnreadable."""
        if not self._seals_new:
            return None
        with _told_as_unreadable():
            return ProjectKey(project, await self._vault.data_key(f"objects/{project}"))

    async def begin(self, project: str, owner: str) -> None:
        """Make the key of a new owner, before its first object is written."""
        key = await self.of_project(project)
        if key is not None:
            async with self._database.transaction() as session:
                await key.add(session, owner)

    def forget(self, owner: str) -> None:
        """Its key was destroyed: ask the row again."""
        self._known.pop(owner, None)

    async def secret_of(self, name: ObjectName, key: str) -> ObjectSecret | None:
        """What the object under `key` is sealed with; None when it is not. Raises KeyDestroyed and KeyUnreadable."""
        root = await self._root(name)
        if root is None:
            return None
        if name.kind == "parts":
            return part_secret(root, key)
        return ObjectSecret(root, key)

    async def root_of_batch(self, project: str, batch_id: str) -> bytes | None:
        """The key of a batch; None when it is not sealed. Raises KeyDestroyed and KeyUnreadable."""
        return await self._root(ObjectName(project, batch_id, "parts"))

    async def _root(self, name: ObjectName) -> bytes | None:
        """The key of the object's owner."""
        known = self._known.get(name.owner)
        if known is None or known[1] < time.monotonic():
            known = (await self._read(name), time.monotonic() + REMEMBERED_S)
            self._known[name.owner] = known
            while len(self._known) > MOST_REMEMBERED:
                self._known.popitem(last=False)
        if known[0] == b"":
            raise KeyDestroyed(f"the key of {name.owner} was destroyed; what it sealed cannot be read any more")
        return known[0]

    async def _read(self, name: ObjectName) -> bytes | None:
        async with self._database.transaction() as session:
            row = await session.scalar(select(ObjectKeyRow).where(col(ObjectKeyRow.owner) == name.owner))
        if row is None:
            return None
        if row.sealed is None:
            return b""
        with _told_as_unreadable():
            data_key = await self._vault.data_key(f"objects/{row.project}")
            # opened by the project in the object's name: another tenant's name does not open it
            return data_key.open(row.sealed, _where(name.project, row.owner))


@contextmanager
def _told_as_unreadable() -> Iterator[None]:
    """Raises KeyUnreadable for Unopenable: the trouble of one project's objects, which stops no loop for the others."""
    try:
        yield
    except Unopenable as closed:
        raise KeyUnreadable(str(closed)) from closed


def part_secret(root: bytes, key: str) -> ObjectSecret:
    """Of the part under `key` (`project/batch/parts/shard/epoch-seq-sha256…`): a key for its lease alone, which a worker may be
    given, and a context without the hash, which is that of the sealed bytes."""
    found = _PART.fullmatch(key)
    if found is None:
        return ObjectSecret(root, key)  # no part that a commit could name
    folder, epoch, seq = found[1], int(found[2]), int(found[3])
    return ObjectSecret(lease_key(root, folder, epoch), part_context(folder, epoch, seq))


def lease_key(root: bytes, folder: str, epoch: int) -> bytes:
    """What the parts of one lease are sealed with. `folder` is `project/batch/parts/shard`."""
    return hkdf(root, b"", f"broker seal v1 lease\x00{folder}/{epoch}".encode())


def part_context(folder: str, epoch: int, seq: int) -> str:
    """Which part it is."""
    return f"{folder}/{epoch}-{seq}"


def name_of_key(key: bytes) -> str:
    """A name for a key that tells nothing about it (it has 256 random bits), to be put into a receipt."""
    return hashlib.sha256(b"broker object key name v1\x00" + key).hexdigest()


def _where(project: str, owner: str) -> str:
    return f"object key of {owner} of project {project}"
