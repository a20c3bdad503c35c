"""`broker backup`: database first, then objects. Objects are immutable and written before the rows that name them, so
everything that the copied rows speak of is there when the objects are copied; what came later is nobody's and does no harm.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Literal

from alembic.migration import MigrationContext
from sqlalchemy import Connection
from sqlalchemy.engine import make_url

from broker.backup import databases
from broker.backup.errors import BackupError
from broker.backup.manifest import Kept, Manifest, copy, measured, require_empty, write
from broker.backup.needed import Needed, needed_objects
from broker.database import Database, Unreachable, sqlite_url
from broker.envelope import Unopenable
from broker.keyring import BadKek, KekUnavailable, open_keyring
from broker.object_keys import ObjectKeys
from broker.sealed_store import SealedStore
from broker.settings import Settings
from broker.vault import Vault
from jobs.errors import KeyDestroyed
from jobs.objects import ObjectStore
from workers.agent.sealing import sealed_size

# Of the data folder: what is copied by other means, belongs to one process, or is a machine's and not the broker's.
NOT_COPIED = frozenset({"broker.db", "broker.db-wal", "broker.db-shm", "broker.owner", "broker.lock", "broker.log",
                        "objects", "sandbox", "local"})  # fmt: skip
INCOMING = ".incoming"


async def make(settings: Settings, folder: Path) -> Manifest:
    """Back up the broker of `settings` into the empty `folder`, while it runs or not.

    Raises BackupError, and Unreachable of the database; then `folder` has no manifest and cannot be taken for a backup.
    """
    is_new = require_empty(folder, "the backup folder")
    url = settings.database_url or sqlite_url(settings.data / "broker.db")
    dialect: Literal["sqlite", "postgresql"] = (
        "sqlite" if make_url(url).get_backend_name() == "sqlite" else "postgresql"
    )
    database = folder / ("database.sqlite" if dialect == "sqlite" else "database.dump")
    # Which objects there must be is read before the copy is made of a live PostgreSQL, out of the copy of SQLite: rows only
    # gain objects as time passes, but for deletions, and those are asked for again below.
    try:
        if dialect == "sqlite":
            databases.copy_sqlite(Path(make_url(url).database or ""), database)
            revision, needed = await _asked(sqlite_url(database))
        else:
            revision, needed = await _asked(url)
            databases.dump_postgres(url, database)
    except (BackupError, Unreachable, OSError):
        _take_back(folder, is_new=is_new)
        raise
    objects = _local_objects(settings)
    files = [measured(database, database.name), *_copied_data(settings.data, folder)]
    if objects is not None:
        files += _copied_objects(objects, folder)
        await _require(needed, {kept.path: kept for kept in files}, url, settings, folder / "objects")
    manifest = Manifest(
        made_us=time.time_ns() // 1000,
        broker=version("compute-broker"),
        owner=(settings.data / "owner").read_text().strip() if (settings.data / "owner").exists() else "",
        dialect=dialect,
        revision=revision,
        objects=objects is not None,
        files=tuple(files),
    )
    write(folder, manifest)
    return manifest


def _take_back(folder: Path, *, is_new: bool) -> None:
    """Leave the folder as it was found, empty or not there: the next attempt wants it so."""
    for file in folder.glob("database.*"):
        file.unlink()
    if is_new:
        folder.rmdir()


def _local_objects(settings: Settings) -> Path | None:
    """The folder of the objects; None when they lie in a bucket, which its own means keep."""
    if settings.objects.kind != "local":
        return None
    return settings.objects.folder or settings.data / "objects"


def _copied_data(data: Path, folder: Path) -> Iterator[Kept]:
    for file in sorted(data.rglob("*")):
        name = file.relative_to(data)
        if name.parts[0] not in NOT_COPIED and file.is_file() and not file.is_symlink():
            yield copy(file, folder / "data" / name, f"data/{name}")


def _copied_objects(objects: Path, folder: Path) -> Iterator[Kept]:
    for at, folders, names in os.walk(objects):
        folders[:] = [each for each in folders if each != INCOMING]
        for name in names:
            file = Path(at) / name
            relative = file.relative_to(objects)
            try:
                yield copy(file, folder / "objects" / relative, f"objects/{relative}")
            except FileNotFoundError:
                continue  # deleted since it was listed; whether it was needed is asked below


async def _require(needed: list[Needed], kept: dict[str, Kept], url: str, settings: Settings, copies: Path) -> None:
    """Every object that is needed is there with the bytes that it should have, or was deleted by its owner meanwhile."""
    wrong = [each for each in needed if each.is_sealed or not is_whole(each, kept)]
    sealed = [each for each in wrong if each.is_sealed and f"objects/{each.key}" in kept]
    if sealed:
        opened = await _that_open(sealed, url, settings, copies)
        wrong = [each for each in wrong if each.key not in opened]
    if not wrong:
        return
    _, still = await _asked(url)
    lost = {each.key for each in still}
    for each in wrong:
        if each.key in lost:
            found = kept.get(f"objects/{each.key}")
            raise BackupError(
                f"object {each.key} ({each.why}) {'is missing' if found is None else f'has sha256 {found.sha256}'}; "
                f"it should have {each.sha256}. Restore it from an earlier backup, or delete that file or batch"
            )


async def _that_open(sealed: list[Needed], url: str, settings: Settings, copies: Path) -> set[str]:
    """Of these copies, those that open and hold what they should. A key that was destroyed meanwhile opens nothing, and its
    file is in no row by then."""
    database = Database(url)
    try:
        keyring = open_keyring(settings.vault, settings.data, may_make=False)
        store = SealedStore(ObjectStore.local(copies), ObjectKeys(database, Vault(database, keyring)))
        found = set[str]()
        for each in sealed:
            with suppress(KeyDestroyed):
                if await store.holds(each.key, each.size, each.sha256):
                    found.add(each.key)
        return found
    except (BadKek, KekUnavailable, Unopenable) as error:
        raise BackupError(
            f"{len(sealed)} objects are sealed and cannot be looked into: {error}. Run the backup with the settings that "
            "the broker runs with, and where its key-encryption key is to be had"
        ) from error
    finally:
        await database.close()


def is_whole(needed: Needed, kept: dict[str, Kept]) -> bool:
    found = kept.get(f"objects/{needed.key}")
    return found is not None and found.sha256 == needed.sha256


def is_there(needed: Needed, kept: dict[str, Kept]) -> bool:
    """Of a backup whose files are as they were made: that what is sealed opens was looked at then."""
    found = kept.get(f"objects/{needed.key}")
    return is_whole(needed, kept) or (
        needed.is_sealed and found is not None and found.bytes == sealed_size(needed.size)
    )


async def _asked(url: str) -> tuple[str, list[Needed]]:
    """The schema's revision, and the objects that its rows speak of."""
    database = Database(url)
    try:
        await database.require()
        async with database.transaction() as session:
            revision = await (await session.connection()).run_sync(_revision)
            return revision, await needed_objects(session)
    finally:
        await database.close()


def _revision(connection: Connection) -> str:
    found = MigrationContext.configure(connection).get_current_revision()
    if found is None:
        raise BackupError("the database has no schema: no broker was ever started on it; check --data or database_url")
    return found
