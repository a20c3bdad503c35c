"""A database that a released broker filled, and left in the middle of its work, is upgraded and gone on with."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import tarfile
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import select, text
from sqlalchemy.engine import make_url

from broker.control.finalise import Finaliser
from broker.database import Database
from broker.migrate import upgrade
from broker.object_keys import ObjectKeys
from broker.sealed_store import SealedStore
from broker.vault import Vault
from jobs import files
from jobs.objects import ObjectStore
from jobs.tables import Batch
from ledger.audit import check
from ledger.tables import Entry
from tests.support.databases import SERVER
from tests.support.line_worker import LineWorker

RELEASES = Path(__file__).resolve().parents[1] / "releases"
DIALECT = "postgresql" if SERVER else "sqlite"


def load(url: str, sql: str) -> None:
    if SERVER:
        plain = make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
        with psycopg.connect(plain, autocommit=True) as connection:
            connection.execute(sql.encode())
        return
    with closing(sqlite3.connect(make_url(url).database or "")) as connection:
        connection.executescript(sql)


@pytest.mark.parametrize("revision", ["0001", "0002", "0010"])
async def test_a_filled_database_is_upgraded_and_its_work_goes_on(
    revision: str, empty_url: str, tmp_path: Path, server: Any
) -> None:
    with tarfile.open(RELEASES / f"{revision}-{DIALECT}.tar.gz") as packed:
        packed.extractall(tmp_path / "old", filter="data")
    await asyncio.to_thread(load, empty_url, (tmp_path / "old" / "dump.sql").read_text())
    await upgrade(empty_url)

    database = Database(empty_url)
    # what the release stored is in clear, and stays so beside what is sealed from now on
    keys = ObjectKeys(database, Vault(database, server.services.vault.keyring))
    store = SealedStore(ObjectStore.local(tmp_path / "old" / "objects"), keys)
    services = replace(server.services, database=database, store=store)
    async with database.transaction() as session:
        # it was filled some time ago: its deadlines have passed since, and that is not what is tested here
        await session.execute(text("UPDATE jobs_batch SET expires_us = 9000000000000000 WHERE status = 'in_progress'"))
        before = (await session.scalars(select(Entry.sha256).order_by(Entry.seq))).all()
        assert before, "the books came along"
        assert await check(session) == []
        ended, going = (await session.scalars(select(Batch).order_by(Batch.created_us))).all()
    assert (ended.status, ended.completed, going.status) == ("completed", 6, "in_progress")
    assert len(await output(services, ended)) == 6

    given = await LineWorker(services).work(going.id)
    assert len(given) == 80 - going.completed, "what was committed is not run again"
    await Finaliser(services).step()
    async with database.transaction() as session:
        batch = await session.get_one(Batch, going.id)
        after = (await session.scalars(select(Entry.sha256).order_by(Entry.seq))).all()
    assert (batch.status, batch.completed, batch.failed) == ("completed", 80, 0)
    answered = [line["custom_id"] for line in await output(services, batch)]
    assert sorted(answered) == sorted(f"line-{n}" for n in range(80))
    assert after[: len(before)] == before, "entries of the release are as they were"
    await database.close()


async def output(services: Any, batch: Batch) -> list[dict[str, Any]]:
    async with services.database.transaction() as session:
        file = await files.get(session, batch.project, batch.output_file_id)
    return [json.loads(line) for line in (await services.store.get(file.object_key)).splitlines()]
