"""API keys: shown once, kept as a hash, and worth nothing when anything about them is wrong."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import select

from broker.database import Database
from broker.keys import Principal, authenticate, create_key, ensure_admin_key, key_text, parse, revoke_key
from broker.tables import Key, Project

NOW = 1_795_305_600_000_000


async def test_a_key_tells_who_holds_it(database: Database) -> None:
    async with database.transaction() as session:
        key, text = await create_key(session, principal="ada", project="eu", roles=["submitter", "viewer"], now_us=NOW)
        found = await authenticate(session, text, NOW)
        assert await session.get(Project, "eu") is not None, (
            "a project that did not exist is created with its first key"
        )
    assert found == Principal(key_id=key.id, name="ada", project="eu", roles=frozenset({"submitter", "viewer"}))


async def test_the_secret_is_not_in_the_database(database: Database) -> None:
    async with database.transaction() as session:
        _, text = await create_key(session, principal="ada", project=None, roles=["admin"], now_us=NOW)
    secret = text.split("_")[2]
    async with database.transaction() as session:
        row = (await session.scalars(select(Key))).one()
        assert secret not in repr(row.model_dump())


async def test_an_expired_or_revoked_key_is_nobody(database: Database) -> None:
    async with database.transaction() as session:
        _, expiring = await create_key(
            session, principal="a", project=None, roles=["viewer"], now_us=NOW, expires_us=NOW + 10
        )
        key, revoked = await create_key(session, principal="b", project=None, roles=["viewer"], now_us=NOW)
        assert await authenticate(session, expiring, NOW + 9) is not None
        assert await authenticate(session, expiring, NOW + 10) is None
        assert await authenticate(session, revoked, NOW) is not None
        assert await revoke_key(session, key.id, NOW + 1)
        assert await authenticate(session, revoked, NOW + 1) is None
        assert not await revoke_key(session, "key_none", NOW)


async def test_another_secret_under_a_known_id_is_nobody(database: Database) -> None:
    async with database.transaction() as session:
        key, _ = await create_key(session, principal="a", project=None, roles=["viewer"], now_us=NOW)
        forged = key_text(key.id.removeprefix("key_"), "0" * 64)
        assert parse(forged) is not None, "the forgery is well-formed: only the hash tells"
        assert await authenticate(session, forged, NOW) is None


@given(st.integers(0, 103), st.sampled_from("0123456789abcdefXYZ_ é"))
def test_a_mistyped_key_is_known_without_the_database(position: int, character: str) -> None:
    """Changing any one character makes the checksum or the form wrong."""
    text = key_text("01KAJ0000000000000000000AB", "5a" * 32)
    position %= len(text)
    mistyped = text[:position] + character + text[position + 1 :]
    assert parse(text) is not None
    assert mistyped == text or parse(mistyped) is None


async def test_roles_and_times_that_make_no_sense_are_refused(database: Database) -> None:
    async with database.transaction() as session:
        with pytest.raises(ValueError, match="must be one of"):
            await create_key(session, principal="a", project=None, roles=[], now_us=NOW)
        with pytest.raises(ValueError, match="king"):
            await create_key(session, principal="a", project=None, roles=["king"], now_us=NOW)  # type: ignore[list-item]
        with pytest.raises(ValueError, match="later time"):
            await create_key(session, principal="a", project=None, roles=["viewer"], now_us=NOW, expires_us=NOW)


async def test_the_admin_key_is_made_once(database: Database) -> None:
    async with database.transaction() as session:
        first = await ensure_admin_key(session, NOW)
    async with database.transaction() as session:
        assert await ensure_admin_key(session, NOW + 1) is None
        found = await authenticate(session, first or "", NOW + 1)
        assert found is not None
        assert found.project is None
        assert found.roles == {"admin"}
        assert await session.get(Project, "default") is not None
