"""`broker restore`: a data folder, and a database, out of a backup; nothing is believed that was not checked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import select
from sqlalchemy.engine import make_url
from sqlmodel import col

from broker.backup import databases
from broker.backup.errors import BackupError
from broker.backup.make import is_there
from broker.backup.manifest import Manifest, copy, damaged, read, require_empty
from broker.backup.needed import needed_objects
from broker.database import Database, sqlite_url
from broker.migrate import config, upgrade
from jobs.tables import Batch
from jobs.types import TERMINAL
from ledger.audit import check


@dataclass(frozen=True, slots=True)
class Restored:
    """What is there again: `open_batches` go on when a broker is started; `missing` are objects that were
    deleted while the backup was made."""

    manifest: Manifest
    open_batches: int
    missing: tuple[str, ...]


async def restore(folder: Path, data: Path, database_url: str | None) -> Restored:
    """Bring back the backup in `folder` as the data folder `data`, which must be empty, and, of PostgreSQL, the database
    that `database_url` names, which must be empty too. The schema is brought to this broker's.

    Raises BackupError before anything is written when the backup is damaged, of a newer broker, or of the other kind of
    database; afterwards when the rows or the books are not as they must be.
    """
    manifest = read(folder)
    _require_readable(folder, manifest, database_url)
    if database_url is not None:
        databases.require_no_tables(database_url)
    require_empty(data, "the data folder")
    for kept in manifest.files:
        root, _, name = kept.path.partition("/")
        if root in ("data", "objects"):
            copy(folder / kept.path, data / (name if root == "data" else kept.path), kept.path)
    url = database_url or sqlite_url(data / "broker.db")
    if manifest.dialect == "sqlite":
        copy(folder / manifest.database, data / "broker.db", manifest.database)
    else:
        databases.restore_postgres(folder / manifest.database, url)
    await upgrade(url)
    return await _checked(manifest, url)


def _require_readable(folder: Path, manifest: Manifest, database_url: str | None) -> None:
    wrong = list(damaged(folder, manifest))
    if wrong:
        raise BackupError(f"the backup is damaged: {'; '.join(wrong[:5])} ({len(wrong)} in all); use another one")
    given = "sqlite" if database_url is None or make_url(database_url).get_backend_name() == "sqlite" else "postgresql"
    if database_url is not None and given == "sqlite":
        raise BackupError("database_url names SQLite: it is restored into the data folder; leave the option out")
    if given != manifest.dialect:
        how = (
            "name an empty database with --database-url"
            if manifest.dialect == "postgresql"
            else "leave out --database-url"
        )
        raise BackupError(f"the backup is of {manifest.dialect}, and {given} is wanted; {how}")
    scripts = ScriptDirectory.from_config(config("sqlite://"))
    try:
        scripts.get_revision(manifest.revision)
    except CommandError as unknown:
        raise BackupError(
            f"the backup's schema is at revision {manifest.revision}, of broker {manifest.broker}, which this broker does not "
            f"know; restore it with that version or a newer one"
        ) from unknown


async def _checked(manifest: Manifest, url: str) -> Restored:
    """The audit of the books, and the rows' word on the objects. What its owner deleted while the backup was made is named."""
    kept = {each.path: each for each in manifest.files}
    database = Database(url)
    try:
        async with database.transaction() as session:
            findings = [each for each in await check(session) if each.severity == "error"]
            needed = await needed_objects(session)
            open_ones = await session.scalars(select(col(Batch.id)).where(col(Batch.status).not_in(TERMINAL)))
            open_batches = len(open_ones.all())
    finally:
        await database.close()
    if findings:
        first = findings[0]
        raise BackupError(
            f"the books do not pass their audit: {first.code} {first.subject}: {first.message} ({len(findings)} findings); "
            "do not serve this folder; use an earlier backup"
        )
    missing = tuple(each.key for each in needed if manifest.objects and not is_there(each, kept))
    return Restored(manifest=manifest, open_batches=open_batches, missing=missing)
