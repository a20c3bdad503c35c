"""Secrets of others: they open where they belong and nowhere else, and change their key-encryption key without being lost."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st
from moto import mock_aws
from pydantic import SecretStr
from sqlalchemy import select, text, update
from sqlmodel import col

from broker.credentials import Credentials
from broker.database import Database
from broker.envelope import FORMAT, Unopenable, close, new_key, open_box
from broker.keyring import AwsKmsKek, BadKek, KekUnavailable, Keyring, LocalKek, open_keyring
from broker.settings import KekSettings, VaultSettings
from broker.tables import Webhook
from broker.vault import Rewrapped, Vault, has_data_keys
from broker.vault_tables import CredentialRow, DataKeyRow
from broker.webhooks import adopt, create, sealing, signing_secrets
from tests.support.lock_watch import watch_locks

CANARY = "AKIA-canary-8c1f"
VALUES = {"access_key_id": SecretStr(CANARY), "secret_access_key": SecretStr("wJalr-canary-77aa")}


def ring(current: str, **keys: bytes) -> Keyring:
    return Keyring(current, {name: LocalKek(key) for name, key in keys.items()})


# --- the envelope ----------------------------------------------------------------------------------------------------


@given(st.binary(max_size=300), st.text(max_size=40))
def test_a_box_opens_with_its_key_in_its_place(plain: bytes, context: str) -> None:
    key = new_key()
    assert open_box(key, close(key, plain, context), context) == plain


@given(st.binary(max_size=60), st.text(max_size=20), st.integers(0, 10_000), st.integers(1, 255))
def test_a_box_that_was_changed_anywhere_does_not_open(plain: bytes, context: str, place: int, flip: int) -> None:
    key = new_key()
    box = bytearray(close(key, plain, context))
    box[place % len(box)] ^= flip
    with pytest.raises(Unopenable):
        open_box(key, bytes(box), context)


def test_a_box_opens_neither_elsewhere_nor_with_another_key_nor_cut_off() -> None:
    key = new_key()
    box = close(key, b"text", "here")
    for other_key, other_box, other_context in (
        (key, box, "there"),
        (new_key(), box, "here"),
        (key, box[:-1], "here"),
        (key, b"", "here"),
        (key, FORMAT, "here"),
    ):
        with pytest.raises(Unopenable):
            open_box(other_key, other_box, other_context)
    assert close(key, b"text", "here") != box, "a nonce is used once"


# --- key-encryption keys ---------------------------------------------------------------------------------------------


def test_the_folders_own_key_is_made_once_and_private(tmp_path: Path) -> None:
    first = open_keyring(VaultSettings(), tmp_path)
    assert (tmp_path / "kek").stat().st_mode & 0o777 == 0o600
    assert open_keyring(VaultSettings(), tmp_path) == first


def test_a_second_broker_without_the_key_does_not_make_another(tmp_path: Path) -> None:
    with pytest.raises(BadKek, match="copy the file"):
        open_keyring(VaultSettings(), tmp_path, may_make=False)
    assert not (tmp_path / "kek").exists()


def test_bad_keys_are_refused_with_the_reason_and_without_their_text(tmp_path: Path) -> None:
    good, text_of_it = new_key(), base64.b64encode(b"canary-kek-0123").decode()
    file = tmp_path / "kek.b64"
    file.write_text(base64.b64encode(good).decode())
    file.chmod(0o644)
    for settings, reason in (
        ({"k": KekSettings(value=SecretStr(text_of_it))}, "15 bytes"),
        ({"k": KekSettings(value=SecretStr("canary-kek!"))}, "not base64"),
        ({"k": KekSettings(file=file)}, "chmod 600"),
        ({"k": KekSettings(file=tmp_path / "none")}, "cannot be read"),
        ({"k": KekSettings()}, "exactly one"),
        ({"k": KekSettings(value=SecretStr(text_of_it), file=file)}, "exactly one"),
    ):
        with pytest.raises(BadKek, match=reason) as refused:
            open_keyring(VaultSettings(keys=settings), tmp_path)
        assert "canary" not in str(refused.value)
        assert text_of_it not in str(refused.value)
    file.chmod(0o600)
    assert open_keyring(VaultSettings(keys={"k": KekSettings(file=file)}), tmp_path) == ring("k", k=good)
    with pytest.raises(BadKek, match="names none"):
        open_keyring(VaultSettings(current="x", keys={"k": KekSettings(file=file)}), tmp_path)


@pytest.fixture
def kms(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    import boto3  # noqa: PLC0415 - an extra

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    with mock_aws():
        yield boto3.client("kms", region_name="eu-central-1")


async def test_aws_kms_wraps_data_keys_bound_to_their_place(database: Database, kms: Any) -> None:
    key_id = kms.create_key()["KeyMetadata"]["KeyId"]
    keks = VaultSettings(keys={"cloud": KekSettings(aws_kms=key_id, aws_region="eu-central-1")})
    vault = Vault(database, open_keyring(keks, Path("/nonexistent")))
    made = await vault.data_key("credentials/x")
    assert await Vault(database, vault.keyring).data_key("credentials/x") == made
    kek = AwsKmsKek(key_id, kms)
    wrapped = await kek.wrap(b"k" * 32, "here")
    assert await kek.unwrap(wrapped, "here") == b"k" * 32
    with pytest.raises(Unopenable):
        await kek.unwrap(wrapped, "there")
    with pytest.raises(KekUnavailable, match="NotFound"):
        await AwsKmsKek("alias/none", kms).wrap(b"k" * 32, "here")


def test_a_kms_key_without_a_region_is_told_and_an_arn_says_its_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The README's own example ended in a traceback of botocore's where no region is set."""
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))

    def opened(key_id: str, **more: str) -> Any:
        keys = {"cloud": KekSettings(aws_kms=key_id, **more)}
        return open_keyring(VaultSettings(keys=keys), tmp_path).keys["cloud"]

    with pytest.raises(BadKek, match=r"vault\.keys\.cloud\.aws_kms = 'alias/broker' .*region.*aws_region"):
        opened("alias/broker")
    with pytest.raises(BadKek, match="aws_region"):
        opened("alias/broker", aws_region="not a region")
    arn = "arn:aws:kms:eu-central-1:111122223333:key/1234abcd"
    assert opened(arn).client.meta.region_name == "eu-central-1"
    elsewhere = VaultSettings(aws_region="us-east-1", keys={"cloud": KekSettings(aws_kms=arn)})
    kek: Any = open_keyring(elsewhere, tmp_path).keys["cloud"]
    assert kek.client.meta.region_name == "eu-central-1", "the region of all is for keys that say none"


# --- the vault -------------------------------------------------------------------------------------------------------


async def test_rotation_stops_anywhere_goes_on_and_loses_nothing(database: Database) -> None:
    old, new = new_key(), new_key()
    before = Vault(database, ring("old", old=old))
    made = {owner: await before.data_key(owner) for owner in ("a", "b", "c")}
    both = Vault(database, ring("new", old=old, new=new))
    async with database.transaction() as session:
        victim = (await session.scalars(select(DataKeyRow).where(col(DataKeyRow.owner) == "c"))).one()
        whole = victim.wrapped
        victim.wrapped = b"\x01damaged"
    stopped = await both.rewrap()
    assert (stopped.count, [(each.owner, each.kek) for each in stopped.closed]) == (2, [("c", "old")])
    assert {each.kek: each.data_keys for each in await both.wrappings()} == {"old": 1, "new": 2}
    assert await Vault(database, ring("new", old=old, new=new)).data_key("a") == made["a"]
    async with database.transaction() as session:
        await session.execute(update(DataKeyRow).where(col(DataKeyRow.owner) == "c").values(wrapped=whole))
    assert (await both.rewrap(), await both.rewrap()) == (Rewrapped(1), Rewrapped(0))
    after = Vault(database, ring("new", new=new))
    assert {owner: await after.data_key(owner) for owner in made} == made
    with pytest.raises(Unopenable, match="'new', which is not here"):
        await Vault(database, ring("old", old=old)).data_key("a")


async def test_another_key_under_a_name_that_has_wrapped_something_wraps_nothing(database: Database) -> None:
    """A file with another key, under the name of before: new projects' data keys went under it, and when it was mended theirs
    did not open any more."""
    old, good, other = ring("k", k=new_key()), new_key(), new_key()
    await Vault(database, old).data_key("a")
    wrong = Vault(database, ring("k", k=other, old=good))
    with pytest.raises(Unopenable, match=r"another key than it was then\. Give vault\.keys\.k its former"):
        await wrong.prove()
    for attempt in (wrong.data_key("new project"), wrong.rewrap()):
        with pytest.raises(Unopenable):
            await attempt
    assert [(each.owner, each.kek) for each in await wrong.closed()] == [("a", "k")]
    right = Vault(database, old)
    await right.prove()
    assert await right.data_key("new project")
    assert await right.closed() == []


async def test_the_first_data_key_damaged_is_no_other_key_and_the_rest_goes_on(database: Database) -> None:
    """One byte of the first row stopped every start of the broker with "it is another key than it was then"."""
    keys = {"k": new_key(), "next": new_key()}
    before = Vault(database, ring("k", **keys))
    made = {owner: await before.data_key(owner) for owner in ("a", "b", "c")}
    async with database.transaction() as session:
        damaged = (await session.scalars(select(DataKeyRow).where(col(DataKeyRow.owner) == "a"))).one()
        damaged.wrapped = damaged.wrapped[:-1] + bytes([damaged.wrapped[-1] ^ 1])
    after = Vault(database, ring("k", **keys))
    with structlog.testing.capture_logs() as told:
        await after.prove()
    assert [(each["event"], each["owner"], each["log_level"]) for each in told] == [("vault.closed", "a", "error")]
    assert await after.data_key("b") == made["b"] and await after.data_key("new project")
    with pytest.raises(Unopenable):
        await after.data_key("a")
    rotated = await Vault(database, ring("next", **keys)).rewrap()
    assert (rotated.count, [each.owner for each in rotated.closed]) == (3, ["a"]), "b, c and the new project's"
    with pytest.raises(Unopenable, match=r"does not open any of the first 3 .* another key"):
        await Vault(database, ring("next", next=new_key())).prove()


async def test_two_brokers_that_make_a_data_key_at_once_share_one(database: Database) -> None:
    keys = ring("k", k=new_key())
    one, two = Vault(database, keys), Vault(database, keys)
    assert not await has_data_keys(database)
    row = await one._make("webhooks")
    assert (await two._make("webhooks")).id == row.id, "the second finds that it was too late"
    assert await one.data_key("webhooks") == await two.data_key("webhooks")
    assert await has_data_keys(database)


async def test_credentials_are_given_to_their_project_only_and_lie_sealed(database: Database) -> None:
    credentials = Credentials(database, Vault(database, ring("k", k=new_key())))
    assert await credentials.for_project("mine", "aws") is None
    kept = await credentials.keep("mine", "aws", VALUES, by="ada")
    assert (kept.names, kept.version) == (("access_key_id", "secret_access_key"), 1)
    assert await credentials.for_project("mine", "aws") == VALUES
    assert await credentials.for_project("theirs", "aws") is None
    await credentials.keep("theirs", "aws", {"access_key_id": SecretStr("x")}, by="eve")
    async with database.transaction() as session:
        rows = {row.project: row for row in await session.scalars(select(CredentialRow))}
        assert CANARY.encode() not in rows["mine"].sealed
        rows["theirs"].sealed = rows["mine"].sealed
    with pytest.raises(Unopenable):
        await credentials.for_project("theirs", "aws")
    assert await credentials.forget("mine", "aws")
    assert not await credentials.forget("mine", "aws")


async def test_credentials_are_replaced_behind_the_lock_that_intents_take(database: Database) -> None:
    """Else an intent that is committed between the look for machines and the new key's commit is rented with that key."""
    credentials = Credentials(database, Vault(database, ring("k", k=new_key())))
    with watch_locks(database.engine) as locks:
        await credentials.keep("mine", "aws", VALUES, by="ada")
    assert "ledger_head" in locks.seen


async def test_webhooks_of_before_the_vault_are_brought_into_it(database: Database) -> None:
    """The row is as a broker of migration 0002 wrote it: nonce and ciphertext under a key derived from DATA/secret."""
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM  # noqa: PLC0415
    from cryptography.hazmat.primitives.hashes import SHA256  # noqa: PLC0415
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF  # noqa: PLC0415

    secret, nonce = b"s" * 32, b"n" * 12
    derived = HKDF(algorithm=SHA256(), length=32, salt=None, info=b"broker sealed secrets v1").derive(secret)
    vault = Vault(database, ring("k", k=new_key()))
    key = await sealing(vault)
    async with database.transaction() as session:
        made, _ = await create(session, key=key, project="p", name="", url="https://x", events=[], now_us=1)
        made.secret, made.data_key = nonce + AESGCM(derived).encrypt(nonce, b"whsec_old", made.id.encode()), None
    await adopt(database, vault, secret)
    await adopt(database, vault, secret)
    async with database.transaction() as session:
        row = await session.get_one(Webhook, made.id)
    assert signing_secrets(row, key=key, now_us=2) == ["whsec_old"]


async def test_an_error_of_the_database_does_not_show_what_was_written(database: Database) -> None:
    with pytest.raises(Exception, match=r"no such table|does not exist") as failure:
        async with database.transaction() as session:
            await session.execute(text("INSERT INTO nowhere VALUES (:x)"), {"x": CANARY})
    assert CANARY not in str(failure.value)
