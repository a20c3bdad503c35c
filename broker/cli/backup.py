"""`backup` and `restore`: a broker's folder and database into a folder of their own, and back, here or elsewhere."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from broker.backup.errors import BackupError
from broker.cli import configuration, exits, options
from broker.cli.exits import Failure
from broker.cli.output import document, line

Folder = Annotated[Path, typer.Argument(help="The backup's folder.", metavar="DIR")]
DatabaseUrl = Annotated[str | None, typer.Option(help="Default: the settings', else SQLite in the data folder.")]


def backup(
    folder: Folder,
    *,
    data: options.Data = None,
    database_url: DatabaseUrl = None,
    config: Annotated[Path | None, typer.Option(help="TOML settings (default: DATA/broker.toml).")] = None,
    json: options.Json = False,
) -> None:
    """Back up database, objects, settings and secrets into an empty folder. The broker may go on running.

    The backup holds the secrets of the data folder, in files of mode 0600: keep it as safe as those.
    """
    from broker.backup.make import make  # noqa: PLC0415 - the rooms take a second that no other command should pay
    from broker.database import Unreachable  # noqa: PLC0415 - as above

    settings = configuration.load(config=config, data=data, database_url=database_url)
    try:
        made = asyncio.run(make(settings, folder))
    except (BackupError, Unreachable, OSError) as wrong:
        raise Failure(str(wrong)) from wrong
    size = sum(kept.bytes for kept in made.files)
    if json:
        document({"folder": str(folder), "files": len(made.files), "bytes": size, "dialect": made.dialect,
                  "revision": made.revision, "objects": made.objects})  # fmt: skip
    else:
        line(f"{len(made.files)} files, {size:,} bytes in {folder}: {made.dialect} at revision {made.revision}")
        line("it holds the broker's secrets: keep it where only its operators can read it")
        if not made.objects:
            line("the objects are not in it: back up their bucket by its own means (versions, replication)")
    raise typer.Exit(exits.OK)


def restore(
    folder: Folder,
    *,
    data: options.Data = None,
    database_url: DatabaseUrl = None,
    json: options.Json = False,
) -> None:
    """Restore a backup into an empty data folder, and its books' audit. Start `serve` on it afterwards.

    A backup of PostgreSQL needs --database-url: an empty database. Never serve two copies of one broker at once: both would
    rent and release the same machines.
    """
    from broker.backup.restore import restore as bring_back  # noqa: PLC0415 - as above

    settings = configuration.load(data=data)
    try:
        restored = asyncio.run(bring_back(folder, settings.data, database_url))
    except (BackupError, OSError) as wrong:
        raise Failure(str(wrong)) from wrong
    if json:
        document({"data": str(settings.data), "files": len(restored.manifest.files), "missing": list(restored.missing),
                  "open_batches": restored.open_batches})  # fmt: skip
    else:
        line(f"{len(restored.manifest.files)} files are as they were written, and the books balance")
        line(f"{restored.open_batches} batches go on when a broker serves {settings.data}")
        for key in restored.missing:
            line(f"object {key} was deleted while the backup was made")
    raise typer.Exit(exits.OK)
