"""API keys: made once, shown once, kept as a hash; who holds one and what it may do.

The text is `brk_<key id>_<secret: 32 random bytes in hex>_<crc32 of what stands before, hex>`. The checksum lets secret
scanners and ourselves tell a mistyped key from a wrong one without a database. The secret has 256 random bits, so a plain
SHA-256 is enough (slow hashes protect guessable passwords); hashes are compared in constant time.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col
from ulid import ULID

from broker.tables import Key, Project

Role = Literal["submitter", "viewer", "compliance", "finance", "operator", "admin"]
ROLES: tuple[Role, ...] = get_args(Role)
DEFAULT_PROJECT = "default"
_TEXT = re.compile(r"brk_([0-9A-Z]{26})_([0-9a-f]{64})_([0-9a-f]{8})")


@dataclass(frozen=True, slots=True)
class Principal:
    """Who is calling: the key, the person or service it belongs to, its project (None: all), its roles."""

    key_id: str
    name: str
    project: str | None
    roles: frozenset[str]

    def may(self, roles: Iterable[str]) -> bool:
        return not self.roles.isdisjoint(roles)


async def create_key(
    session: AsyncSession,
    *,
    principal: str,
    project: str | None,
    roles: Iterable[Role],
    now_us: int,
    expires_us: int | None = None,
) -> tuple[Key, str]:
    """A new key and its text, which is kept nowhere. A project that does not exist yet is created.

    Raises ValueError for an unknown role, no role, or an end that lies in the past.
    """
    wanted = sorted(set(roles))
    unknown = [role for role in wanted if role not in ROLES]
    if unknown or not wanted:
        raise ValueError(f"roles {wanted} of a new key: each must be one of {', '.join(ROLES)}, and there must be one")
    if expires_us is not None and expires_us <= now_us:
        raise ValueError(f"a key that expires at {expires_us} µs is of no use at {now_us} µs; name a later time")
    if project is not None:
        await ensure_project(session, project, now_us)
    number, secret = str(ULID()), secrets.token_bytes(32).hex()
    key = Key(
        id=f"key_{number}",
        secret_sha256=_hash(secret),
        principal=principal,
        project=project,
        roles=list(wanted),
        created_us=now_us,
        expires_us=expires_us,
        revoked_us=None,
    )
    session.add(key)
    await session.flush()
    return key, key_text(number, secret)


async def authenticate(session: AsyncSession, text: str, now_us: int) -> Principal | None:
    """Who holds this key, or None when it is malformed, unknown, expired or revoked: a caller is told no more."""
    parts = parse(text)
    if parts is None:
        return None
    number, secret = parts
    key = await session.get(Key, f"key_{number}")
    # Compare also when there is no such key, so that the time taken tells nothing about which ids exist.
    same = hmac.compare_digest(key.secret_sha256 if key else "0" * 64, _hash(secret))
    if key is None or not same or key.revoked_us is not None:
        return None
    if key.expires_us is not None and key.expires_us <= now_us:
        return None
    return Principal(key_id=key.id, name=key.principal, project=key.project, roles=frozenset(key.roles))


async def revoke_key(session: AsyncSession, key_id: str, now_us: int, *, project: str | None = None) -> bool:
    """End a key now. False when there is none with this id, or none in `project` where that is given.

    Revoking twice keeps the first time.
    """
    key = await session.get(Key, key_id)
    if key is None or project not in (None, key.project):
        return False
    if key.revoked_us is None:
        key.revoked_us = now_us
        session.add(key)
    return True


async def ensure_admin_key(session: AsyncSession, now_us: int, *, is_kept: bool = True) -> str | None:
    """On the first start: the default project and an admin key, whose text is returned. Later: None.

    `is_kept` False: nobody has the text of an earlier one (the process died before it was written down, or the file was
    lost). Whoever owns the data folder gets a new key; the earlier ones stay as they are.
    """
    await ensure_project(session, DEFAULT_PROJECT, now_us)
    holders = await session.scalars(select(Key).where(col(Key.project).is_(None)))
    if is_kept and any("admin" in key.roles for key in holders):
        return None
    _, text = await create_key(session, principal="admin", project=None, roles=["admin"], now_us=now_us)
    return text


async def ensure_project(session: AsyncSession, name: str, now_us: int) -> Project:
    """The project with this name, created when it is new. Its id is its name, so that object keys can be read."""
    found = await session.get(Project, name)
    if found is not None:
        return found
    project = Project(id=name, name=name, created_us=now_us, policy=None)
    session.add(project)
    await session.flush()
    return project


def key_text(number: str, secret: str) -> str:
    """What a person is shown."""
    body = f"brk_{number}_{secret}"
    return f"{body}_{_checksum(body)}"


def parse(text: str) -> tuple[str, str] | None:
    """(key number, secret) of a well-formed key whose checksum is right, else None."""
    match = _TEXT.fullmatch(text)
    if match is None or _checksum(text.rpartition("_")[0]) != match[3]:
        return None
    return match[1], match[2]


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _checksum(body: str) -> str:
    return f"{zlib.crc32(body.encode()):08x}"
