"""What projects log in with at markets (bring your own key): kept sealed, given to the market's adapter, shown to nobody.

`Credentials.for_project` is the adapters' door. Values go in by the API and never come back out of it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pydantic import SecretStr
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from broker.database import Database
from broker.vault import Vault
from broker.vault_tables import CredentialRow
from jobs.clock import db_now


@dataclass(frozen=True, slots=True)
class Kept:
    """What may be told of a credential: everything but its values. Times are microseconds UTC."""

    project: str
    market: str
    names: tuple[str, ...]
    version: int
    created_us: int
    updated_us: int
    updated_by: str


@dataclass(frozen=True)
class Credentials:
    """The credentials of all projects at all markets."""

    database: Database
    vault: Vault

    async def for_project(self, project: str, market: str) -> Mapping[str, SecretStr] | None:
        """The project's own values by name, such as `access_key_id`; None: it has none there, use the house's.

        Not to be called inside a transaction. Raises Unopenable.
        """
        async with self.database.transaction() as session:
            row = await session.get(CredentialRow, (project, market))
        if row is None:
            return None
        key = await self.vault.data_key(_owner(project))
        plain = json.loads(key.open(row.sealed, _context(row.project, row.market, row.version)))
        return {name: SecretStr(value) for name, value in plain.items()}

    async def keep(self, project: str, market: str, values: Mapping[str, SecretStr], *, by: str) -> Kept:
        """Replace all that the project had there. `by` is the principal who did it."""
        key = await self.vault.data_key(_owner(project))
        plain = json.dumps({name: value.get_secret_value() for name, value in sorted(values.items())}).encode()
        async with self.database.transaction() as session:
            now_us = await db_now(session)
            row = await _locked(session, project, market)
            version = 1 if row is None else row.version + 1
            merged = await session.merge(
                CredentialRow(
                    project=project,
                    market=market,
                    version=version,
                    names=sorted(values),
                    data_key=key.id,
                    sealed=key.close(plain, _context(project, market, version)),
                    created_us=now_us if row is None else row.created_us,
                    updated_us=now_us,
                    updated_by=by,
                )
            )
            return _kept(merged)

    async def of_project(self, project: str) -> Sequence[Kept]:
        """What the project has, by market."""
        query = select(CredentialRow).where(col(CredentialRow.project) == project).order_by(col(CredentialRow.market))
        async with self.database.transaction() as session:
            return [_kept(row) for row in await session.scalars(query)]

    async def at_market(self, market: str) -> Sequence[Kept]:
        """What is kept for a market, by project."""
        query = select(CredentialRow).where(col(CredentialRow.market) == market).order_by(col(CredentialRow.project))
        async with self.database.transaction() as session:
            return [_kept(row) for row in await session.scalars(query)]

    async def holders(self, market: str) -> Sequence[str]:
        """The projects that have credentials of their own at `market`, by name."""
        query = select(col(CredentialRow.project)).where(col(CredentialRow.market) == market)
        async with self.database.transaction() as session:
            return (await session.scalars(query.order_by(col(CredentialRow.project)))).all()

    async def held(self) -> frozenset[str]:
        """The markets at which any project has credentials of its own."""
        async with self.database.transaction() as session:
            return frozenset(await session.scalars(select(col(CredentialRow.market)).distinct()))

    async def forget(self, project: str, market: str) -> bool:
        """False when there was none."""
        async with self.database.transaction() as session:
            row = await _locked(session, project, market)
            if row is not None:
                await session.delete(row)
            return row is not None


async def _locked(session: AsyncSession, project: str, market: str) -> CredentialRow | None:
    return await session.get(CredentialRow, (project, market), with_for_update=True)


def _kept(row: CredentialRow) -> Kept:
    return Kept(row.project, row.market, tuple(row.names), row.version, row.created_us, row.updated_us, row.updated_by)


def _owner(project: str) -> str:
    return f"credentials/{project}"


def _context(project: str, market: str, version: int) -> str:
    return f"credentials of {project} at {market}, version {version}"
