"""The store behind a seal: reads as any store does; what lies there is no text, and what was tampered with is never read."""

from __future__ import annotations

import hashlib
import random
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from broker.compliance.destruction import retire
from broker.database import Database
from broker.keyring import open_keyring
from broker.object_keys import ObjectKeys, part_secret
from broker.sealed_store import SealedStore
from broker.settings import VaultSettings
from broker.vault import Rewrapped, Vault
from broker.vault_tables import ObjectKeyRow
from jobs import ids
from jobs.errors import KeyDestroyed, ObjectCorrupt, ObjectExists, ObjectMissing, ObjectTampered
from jobs.keys import input_key, part_key, result_key
from jobs.objects import ObjectStore
from workers.agent import sealing
from workers.agent.sealing import HEADER, SEGMENT

TEXT = b"What is the meaning of this? " * 11_000  # five segments


async def chunks(content: bytes, size: int = 70_001) -> AsyncIterator[bytes]:
    for at in range(0, len(content), size):
        yield content[at : at + size]


@pytest.fixture
def keys(database: Database, tmp_path: Path) -> ObjectKeys:
    return ObjectKeys(database, Vault(database, open_keyring(VaultSettings(), tmp_path)))


@pytest.fixture
def store(object_store: ObjectStore, keys: ObjectKeys) -> SealedStore:
    return SealedStore(object_store, keys)


@pytest.fixture
async def file(store: SealedStore) -> str:
    """The key of a stored file of TEXT."""
    file_id = ids.file_id()
    await store.secrets.begin("acme", file_id)
    await store.put_stream(input_key("acme", file_id), chunks(TEXT))
    return input_key("acme", file_id)


async def replace(store: SealedStore, key: str, content: bytes) -> None:
    """Somebody who owns the store puts something else there."""
    await store.inner.delete(key)
    await store.inner.put(key, content)


async def test_every_range_reads_as_it_was_written_and_nothing_of_it_lies_there(store: SealedStore, file: str) -> None:
    assert await store.size(file) == len(TEXT)
    assert await store.get(file) == TEXT
    assert await store.holds(file, len(TEXT), hashlib.sha256(TEXT).hexdigest())
    chance = random.Random(7)
    edges = [0, 1, SEGMENT - 1, SEGMENT, SEGMENT + 1, 4 * SEGMENT, len(TEXT) - 1, len(TEXT)]
    for start, stop in [sorted(chance.choices([*edges, chance.randrange(len(TEXT))], k=2)) for _ in range(40)]:
        assert await store.get(file, start, stop) == TEXT[start:stop], (start, stop)
    with pytest.raises(ObjectCorrupt):
        await store.get(file, 0, len(TEXT) + 1)
    stored = await store.inner.get(file)
    assert b"What is" not in stored
    assert len(stored) == sealing.sealed_size(len(TEXT))


async def test_names_are_given_once_and_the_same_text_again_is_success(store: SealedStore, file: str) -> None:
    """Each seal of a text is another object; it is the text that is compared."""
    with pytest.raises(ObjectExists):
        await store.put(file, TEXT)
    assert (await store.put_same(file, lambda: chunks(TEXT, 5_000))).sha256 == hashlib.sha256(TEXT).hexdigest()
    with pytest.raises(ObjectExists, match="exists with other content"):
        await store.put_same(file, lambda: chunks(TEXT + b"!"))


async def test_an_empty_object_is_an_object(store: SealedStore) -> None:
    file_id = ids.file_id()
    await store.secrets.begin("acme", file_id)
    key = input_key("acme", file_id)
    await store.put_stream(key, chunks(b""))
    assert (await store.size(key), await store.get(key)) == (0, b"")
    await replace(store, key, bytes(sealing.sealed_size(0)))
    with pytest.raises(ObjectTampered):
        await store.get(key)


async def test_what_somebody_changed_moved_cut_or_unsealed_is_a_typed_error_and_never_text(
    store: SealedStore, file: str
) -> None:
    sealed = await store.inner.get(file)
    other_id = ids.file_id()
    await store.secrets.begin("acme", other_id)
    other = input_key("acme", other_id)
    await store.put(other, TEXT)
    box = SEGMENT + sealing.TAG
    swapped = sealed[:HEADER] + sealed[HEADER + box : HEADER + 2 * box] + sealed[HEADER : HEADER + box]
    for tampered in (
        sealed[:50_000] + bytes([sealed[50_000] ^ 1]) + sealed[50_001:],  # a bit
        swapped + sealed[HEADER + 2 * box :],  # two segments
        sealed[: HEADER + 3 * box],  # whole segments are missing at the end
        sealed[:-1],  # of a size that no object has
        await store.inner.get(other),  # the same text, sealed for another file
        TEXT,  # in clear
        TEXT[: len(sealed)] + bytes(max(0, len(sealed) - len(TEXT))),  # in clear, of the right size
    ):
        await replace(store, file, tampered)
        fresh = SealedStore(store.inner, store.secrets)  # which has read nothing of it yet
        with pytest.raises(ObjectTampered):
            await fresh.get(file)
        assert not await fresh.holds(file, len(TEXT), hashlib.sha256(TEXT).hexdigest())
        for start in (0, 3 * SEGMENT, len(TEXT) - 10):
            # a piece that is authentic may be read; anything else is an error
            with suppress(ObjectCorrupt):
                assert await fresh.get(file, start, start + 10) == TEXT[start : start + 10]


async def test_the_name_of_another_tenants_object_does_not_open_it(store: SealedStore, file: str) -> None:
    """A row that named another project's file under one's own name would read nothing."""
    stolen = "evil/" + file.partition("/")[2]
    await store.inner.put(stolen, await store.inner.get(file))
    store.secrets.forget(file.rpartition("/")[2])
    with pytest.raises(Exception, match="does not open"):
        await store.get(stolen)


async def test_owners_of_before_and_those_made_while_it_is_off_stay_in_clear(
    object_store: ObjectStore, database: Database, tmp_path: Path
) -> None:
    off = SealedStore(
        object_store,
        ObjectKeys(database, Vault(database, open_keyring(VaultSettings(), tmp_path)), seals_new=False),
    )
    key = input_key("acme", ids.file_id())
    await off.secrets.begin("acme", key.rpartition("/")[2])
    await off.put(key, TEXT)
    assert await off.inner.get(key) == TEXT
    on = SealedStore(object_store, ObjectKeys(database, off.secrets._vault))
    assert await on.get(key, 5, 9) == TEXT[5:9]
    assert await on.size(key) == len(TEXT)
    assert await on.sealed_range(key, 0, 5) is None


async def test_a_part_is_known_by_the_bytes_that_its_worker_stored(store: SealedStore) -> None:
    batch, plain = ids.batch_id(), b"the lines of a part"
    await store.secrets.begin("acme", batch)
    where = {"epoch": 3, "seq": 1}
    root = await store.secrets.root_of_batch("acme", batch)
    assert root is not None
    secret = part_secret(root, part_key("acme", batch, "shard_1", sha256="0" * 64, **where))
    sealed = sealing.seal(secret.key, secret.context, plain)
    digest = hashlib.sha256(sealed).hexdigest()
    key = part_key("acme", batch, "shard_1", sha256=digest, **where)
    await store.inner.put(key, sealed)
    assert await store.holds(key, len(sealed), digest)
    assert not await store.holds(key, len(sealed), "0" * 64)
    assert await store.committed(key, len(sealed), digest) == plain
    # what another lease's key sealed is no part of this one, whatever its commit says
    late = part_secret(root, part_key("acme", batch, "shard_1", sha256=digest, epoch=2, seq=1))
    assert late.key != secret.key
    await replace(store, key, sealing.seal(late.key, secret.context, plain))
    with pytest.raises(ObjectTampered):
        await store.committed(key, None, digest)
    # and neither is a part that its worker did not seal
    await replace(store, key, plain)
    with pytest.raises(ObjectTampered):
        await store.committed(key, len(plain), hashlib.sha256(plain).hexdigest())


async def test_a_part_that_the_broker_sealed_for_its_worker_is_known_by_what_it_holds(store: SealedStore) -> None:
    batch, plain = ids.batch_id(), b"the lines of a part"
    await store.secrets.begin("acme", batch)
    digest = hashlib.sha256(plain).hexdigest()
    key = part_key("acme", batch, "shard_1", epoch=1, seq=0, sha256=digest)
    await store.put(key, plain)
    assert plain not in await store.inner.get(key)
    assert await store.holds(key, len(plain), digest)
    assert not await store.holds(key, len(plain), "0" * 64)
    assert await store.committed(key, len(plain), digest) == plain
    with pytest.raises(ObjectCorrupt, match="not the 3 that were committed"):
        await store.committed(key, 3, digest)


async def test_what_a_destroyed_key_sealed_is_missing_wherever_it_still_lies(
    store: SealedStore, database: Database, file: str
) -> None:
    owner = file.rpartition("/")[2]
    async with database.transaction() as session:
        assert await retire(session, b"s" * 32, [owner], "unneeded") == (owner,)
        assert await retire(session, b"s" * 32, [owner], "unneeded") == (), "a key is destroyed once"
    async with database.transaction() as session:
        row = await session.get_one(ObjectKeyRow, owner)
        assert (row.sealed, row.decision) == (None, 1)
        assert row.destroyed_us is not None
    store.secrets.forget(owner)
    readings: list[Any] = [store.get(file), store.size(file), store.sealed_range(file, 0, 1), store.put(file, b"again")]
    for reading in readings:
        with pytest.raises(KeyDestroyed):
            await reading
    assert await store.inner.size(file) == sealing.sealed_size(len(TEXT)), "the ciphertext may lie there for ever"
    with pytest.raises(ObjectMissing):
        await store.holds(file, len(TEXT), hashlib.sha256(TEXT).hexdigest())


async def test_a_kek_that_is_replaced_opens_nothing_anew_and_loses_nothing(
    object_store: ObjectStore, database: Database, tmp_path: Path
) -> None:
    """One key a project is wrapped again, not one a batch; what was read before is read after, and a new broker needs the new
    KEK alone."""
    first = VaultSettings.model_validate({"keys": {"a": {"value": "YWFh" * 10 + "YWE="}}})
    both = VaultSettings.model_validate(
        {"current": "b", "keys": {"a": {"value": "YWFh" * 10 + "YWE="}, "b": {"value": "YmJi" * 10 + "YmI="}}}
    )
    then = VaultSettings.model_validate({"keys": {"b": {"value": "YmJi" * 10 + "YmI="}}})
    store = SealedStore(object_store, ObjectKeys(database, Vault(database, open_keyring(first, tmp_path))))
    written = []
    for _ in range(3):
        batch = ids.batch_id()
        await store.secrets.begin("acme", batch)
        written.append(result_key("acme", batch, "output", "0" * 64))
        await store.put(written[-1], TEXT)
    async with database.transaction() as session:
        before = (await session.get_one(ObjectKeyRow, written[0].split("/")[1])).sealed
    assert await Vault(database, open_keyring(both, tmp_path)).rewrap() == Rewrapped(1)
    async with database.transaction() as session:
        assert (await session.get_one(ObjectKeyRow, written[0].split("/")[1])).sealed == before
    assert await store.get(written[0], 0, 9) == TEXT[:9], "a broker that has the key goes on"
    anew = SealedStore(object_store, ObjectKeys(database, Vault(database, open_keyring(then, tmp_path))))
    for key in written:
        assert await anew.get(key) == TEXT
