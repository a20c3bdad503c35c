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
from ledger.book import lock
from markets import rentals
from markets.own_account import account_name


class MachinesRun(Exception):
    """Machines run in the account whose credentials would be removed, or replaced by some that are not known to be of it."""


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
    account: str | None


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

    async def keep(
        self,
        project: str,
        market: str,
        values: Mapping[str, SecretStr],
        *,
        by: str,
        account: str | None = None,
        doubt: str | None = None,
    ) -> Kept:
        """Replace all that the project had there. `by` is the principal who did it, `account` the provider's account that they
        are of; `doubt` says why it is not known.

        Raises MachinesRun: the list of another account would be complete and without the machines that run in this one, and
        they would be written off as lost while they cost on.
        """
        key = await self.vault.data_key(_owner(project))
        plain = json.dumps({name: value.get_secret_value() for name, value in sorted(values.items())}).encode()
        async with self.database.transaction() as session:
            now_us = await db_now(session)
            row = await _locked(session, project, market)
            rented = await _rented(session, account_name(market, project))
            if rented:
                _same_account(row, account, doubt, f"{rented} machines of {account_name(market, project)} run")
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
                    account=account,
                )
            )
            return _kept(merged)

    async def learnt(self, kept: Kept, account: str) -> None:
        """Write down of which account these are; nothing when others were kept meanwhile."""
        async with self.database.transaction() as session:
            row = await _locked(session, kept.project, kept.market)
            if row is not None and row.version == kept.version:
                row.account = account

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
        """False when there was none. Raises MachinesRun: nobody could log in to them any more."""
        account = account_name(market, project)
        async with self.database.transaction() as session:
            row = await _locked(session, project, market)
            rented = await _rented(session, account)
            if rented:
                raise MachinesRun(f"{rented} machines of {account} run on them")
            if row is not None:
                await session.delete(row)
            return row is not None


async def _rented(session: AsyncSession, account: str) -> int:
    """The machines that are paid for or about to be. Counted behind the lock that intents take before they are written: else
    one that is about to be would be rented uncounted, with credentials that are changed or gone."""
    await lock(session)
    return len(await rentals.open_rentals(session, account))


async def _locked(session: AsyncSession, project: str, market: str) -> CredentialRow | None:
    return await session.get(CredentialRow, (project, market), with_for_update=True)


def _same_account(row: CredentialRow | None, account: str | None, doubt: str | None, rented: str) -> None:
    """Raises MachinesRun. Where the account before is not known, as with a key of an older broker's that is refused now, any
    that is known will do: such a key must be replaceable."""
    if account is None:
        raise MachinesRun(
            f"{rented}, and of which account the new credentials are is not known: {doubt or 'not asked'}"
        )
    if row is not None and row.account is not None and row.account != account:
        raise MachinesRun(f"{rented} in the account {row.account}, and the new credentials are of {account}")


def _kept(row: CredentialRow) -> Kept:
    return Kept(
        project=row.project,
        market=row.market,
        names=tuple(row.names),
        version=row.version,
        created_us=row.created_us,
        updated_us=row.updated_us,
        updated_by=row.updated_by,
        account=row.account,
    )


def _owner(project: str) -> str:
    return f"credentials/{project}"


def _context(project: str, market: str, version: int) -> str:
    return f"credentials of {project} at {market}, version {version}"
