"""Brokers of one database work on one object store: one that was given another is told so, before it loses anybody's objects."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest

from broker.database import Database
from broker.store_identity import MARKER, OtherStore, refusal, require_same_store, standing_of
from broker.tables import Agreed
from jobs.objects import ObjectStore
from jobs.tables import File


async def stored(database: Database, store: ObjectStore, name: str = "file-1") -> None:
    """A file that somebody uploaded."""
    key = f"acme/files/{name}"
    await store.put(key, b"{}\n")
    async with database.transaction() as session:
        row = {
            "id": name,
            "project": "acme",
            "purpose": "batch",
            "filename": "in.jsonl",
            "bytes": 3,
            "sha256": "0" * 64,
        }
        session.add(File(**row, object_key=key, created_us=1))


async def start(database: Database, folder: Path) -> ObjectStore:
    """What a broker does with its store at its start."""
    store = ObjectStore.local(folder)
    await require_same_store(database, store, f"local folder {folder}")
    return store


async def test_a_second_broker_with_a_folder_of_its_own_does_not_start(database: Database, tmp_path: Path) -> None:
    """A volume each, where a shared one was meant: what was uploaded to the one was missing to the other."""
    first = await start(database, tmp_path / "first")
    await stored(database, first)
    await start(database, tmp_path / "first")
    with pytest.raises(
        OtherStore, match=r"second is not the store.*1 of its 1 newest files are not there.*\[objects\]"
    ):
        await start(database, tmp_path / "second")
    assert not (tmp_path / "second" / MARKER).exists(), "what was refused is left as it was"
    assert refusal(await standing_of(database, first), "here") is None


async def test_before_anything_is_stored_only_a_broker_that_may_have_others_is_held_to_its_store(
    database: Database, tmp_path: Path
) -> None:
    """Somebody who tries out where objects shall lie is in nobody's way; on PostgreSQL another broker may run there already."""
    await start(database, tmp_path / "first")
    if database.is_shared:
        with pytest.raises(OtherStore, match="it has no name"):
            await start(database, tmp_path / "second")
    else:
        await stored(database, await start(database, tmp_path / "second"))
        with pytest.raises(OtherStore, match="it is named"):
            await start(database, tmp_path / "first")


async def test_a_store_that_another_database_was_used_with_is_no_store_of_ours(
    database: Database, tmp_path: Path
) -> None:
    await stored(database, await start(database, tmp_path / "ours"))
    await ObjectStore.local(tmp_path / "theirs").put(MARKER, b"THEIRS")
    with pytest.raises(OtherStore, match="it is named THEIRS"):
        await start(database, tmp_path / "theirs")


async def test_a_moved_folder_is_known_by_its_name_or_by_what_is_in_it(database: Database, tmp_path: Path) -> None:
    """`mv objects/* elsewhere` leaves the name behind, for it begins with a dot."""
    await stored(database, await start(database, tmp_path / "first"))
    name = (tmp_path / "first" / MARKER).read_text()
    shutil.move(tmp_path / "first", tmp_path / "second")
    await start(database, tmp_path / "second")
    (tmp_path / "second" / MARKER).unlink()
    await start(database, tmp_path / "second")
    assert (tmp_path / "second" / MARKER).read_text() == name


async def test_a_person_may_say_that_another_store_takes_the_place_as_the_message_says(
    database: Database, tmp_path: Path
) -> None:
    await stored(database, await start(database, tmp_path / "first"))
    with pytest.raises(OtherStore) as refused:
        await start(database, tmp_path / "second")
    name = (tmp_path / "first" / MARKER).read_text()
    assert f"write {name} into its object {MARKER}" in str(refused.value)
    (tmp_path / "second" / MARKER).write_text(name + "\n")
    await start(database, tmp_path / "second")


async def test_a_database_of_an_older_release_takes_the_store_that_it_is_started_with(
    database: Database, tmp_path: Path
) -> None:
    """Neither had a name, whether objects are there or were lost long ago; looking at them gives none."""
    store = ObjectStore.local(tmp_path)
    await stored(database, store)
    await stored(database, store, "file-2")
    await store.delete("acme/files/file-2")
    assert refusal(await standing_of(database, store), "here") is None
    assert not (tmp_path / MARKER).exists()
    await start(database, tmp_path)
    async with database.transaction() as session:
        assert (await session.get_one(Agreed, "store")).value == (tmp_path / MARKER).read_bytes()


async def test_brokers_that_start_together_agree_on_one_store(database: Database, tmp_path: Path) -> None:
    await asyncio.gather(*(start(database, tmp_path / "shared") for _ in range(3)))
    both = [tmp_path / "shared", tmp_path / "other"]
    found = await asyncio.gather(*(start(database, folder) for folder in both), return_exceptions=True)
    assert [type(each) for each in found] == [ObjectStore, OtherStore if database.is_shared else ObjectStore]
