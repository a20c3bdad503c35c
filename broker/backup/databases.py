"""A consistent copy of a database that is in use, and its way back.

SQLite: the online backup API, in one step under one read transaction; WAL lets the broker write meanwhile. PostgreSQL: its own
`pg_dump` and `pg_restore` (custom format, one snapshot), of the server's version or newer. Passwords go by environment.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from sqlalchemy import create_engine, inspect
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from broker.backup.errors import BackupError


def copy_sqlite(source: Path, target: Path) -> None:
    """The committed state at one moment. Raises BackupError when there is no database or it is damaged."""
    if not source.is_file():
        raise BackupError(f"{source} does not exist: no broker ever served this data folder; check --data")
    target.touch(mode=0o600)
    with closing(sqlite3.connect(source)) as reading, closing(sqlite3.connect(target)) as writing:
        reading.backup(writing, pages=-1)
        # of the copy, so that it is one file and needs no recovery
        writing.execute("PRAGMA journal_mode=delete")
        found = writing.execute("PRAGMA integrity_check").fetchone()[0]
    if found != "ok":
        raise BackupError(f"{source}: {found}; restore an earlier backup, or recover it with sqlite3's .recover")


def dump_postgres(url: str, target: Path) -> None:
    """Raises BackupError with pg_dump's own words."""
    target.touch(mode=0o600)
    _run(url, "pg_dump", ("--format=custom", "--no-owner", "--no-privileges", f"--file={target}"))


def restore_postgres(source: Path, url: str) -> None:
    """Into an empty database, all or nothing. Raises BackupError."""
    require_no_tables(url)
    options = ("--single-transaction", "--exit-on-error", "--no-owner", "--no-privileges")
    _run(url, "pg_restore", (*options, f"--dbname={make_url(url).database}", str(source)))


def require_no_tables(url: str) -> None:
    """Raises BackupError when there are some, or the database does not let us in."""
    tables = _tables(url)
    if tables:
        raise BackupError(
            f"database {_shown(url)} has {len(tables)} tables ({tables[0]}, …); create an empty one and name that"
        )


def _tables(url: str) -> list[str]:
    engine = create_engine(make_url(url).set(drivername="postgresql+psycopg"))
    try:
        return inspect(engine).get_table_names()
    except SQLAlchemyError as away:
        said = " ".join(str(away.orig if isinstance(away, DBAPIError) else away).split())
        raise BackupError(f"the database {_shown(url)} cannot be used: {said}; see whether it is up") from away
    finally:
        engine.dispose()


def _run(url: str, program: str, arguments: Sequence[str]) -> None:
    found = shutil.which(program)
    if found is None:
        raise BackupError(
            f"{program} is not on the PATH; install PostgreSQL's client tools (Debian: postgresql-client)"
        )
    ran = subprocess.run(
        [found, "--no-password", *arguments],
        env={**os.environ, **_environment(make_url(url))},
        capture_output=True,
        check=False,
    )
    if ran.returncode:
        said = ran.stderr.decode(errors="replace").strip()
        raise BackupError(f"{program} of {_shown(url)} ended with status {ran.returncode}: {said}")


def _environment(url: URL) -> dict[str, str]:
    """libpq's variables: what is in argv, everybody on the machine can read."""
    values = {
        "PGHOST": url.host,
        "PGPORT": str(url.port) if url.port else None,
        "PGUSER": url.username,
        "PGPASSWORD": url.password,
        "PGDATABASE": url.database,
        "PGSSLMODE": url.query.get("sslmode"),
        "PGSSLROOTCERT": url.query.get("sslrootcert"),
    }
    return {name: str(value) for name, value in values.items() if value}


def _shown(url: str) -> str:
    return make_url(url).render_as_string(hide_password=True)
