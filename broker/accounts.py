"""Markets at which projects rent with their own credentials (bring your own key): one account for each project that has some.

An account is opened when its project keeps credentials and closed when it forgets them; each is polled, swept and billed by
itself, so that a key which is refused stops nobody else (`markets/own_account.py`). The house's account at that market is not
for such a project: its spending is meant to be on its own bill.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field

import structlog
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from broker.credentials import Credentials
from broker.envelope import Unopenable
from broker.vault_tables import CredentialRow
from markets.errors import NotAuthorized
from markets.market import Market
from markets.own_account import AccountMarket, account_name, owner_mark

log = structlog.get_logger()

# Gives a project's values whenever the adapter logs in anew. NotAuthorized: there are none, or they cannot be opened.
Values = Callable[[], Awaitable[Mapping[str, str]]]
# Makes a market's adapter for the login that `Values` gives, with this mark on its machines.
Opener = Callable[[Values, str], Awaitable[Market]]


@dataclass
class Accounts:
    """`openers` by market: where projects can rent by themselves. `opened` by the account's name is what `refresh` left.

    Several loops refresh: one at a time, and an account is never without an adapter while its credentials change, for without
    one its machines would be taken for those of a market that nobody has configured.
    """

    credentials: Credentials | None = None
    owner: str = ""
    openers: Mapping[str, Opener] = field(default_factory=dict)
    opened: dict[str, Market] = field(default_factory=dict)
    _versions: dict[str, int] = field(default_factory=dict)
    _refreshing: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def refresh(self) -> None:
        """Open what is new, anew what has other credentials now, and close what was given up. Not inside a transaction."""
        if self.credentials is None or not self.openers:
            return
        async with self._refreshing:
            await self._refresh(self.credentials)

    async def _refresh(self, credentials: Credentials) -> None:
        wanted = {
            account_name(kept.market, kept.project): kept
            for market in self.openers
            for kept in await credentials.at_market(market)
        }
        for name in [name for name in self.opened if name not in wanted]:
            await self._close(name)
        for name, kept in wanted.items():
            if self._versions.get(name) == kept.version:
                continue
            inner = await self._open(kept.market, kept.project)
            replaced = self.opened.get(name)
            self.opened[name] = AccountMarket(name, owner_mark(self.owner, kept.project), inner)
            self._versions[name] = kept.version
            if replaced is not None:
                await replaced.close()
            log.info("account.opened", market=kept.market, project=kept.project, version=kept.version)

    async def close(self) -> None:
        for name in list(self.opened):
            await self._close(name)

    async def _open(self, market: str, project: str) -> Market:
        credentials = self.credentials
        assert credentials is not None, "`refresh` has looked"

        async def values() -> Mapping[str, str]:
            try:
                kept = await credentials.for_project(project, market)
            except Unopenable as closed:
                raise NotAuthorized(f"{market}: the credentials of {project!r} cannot be opened: {closed}") from closed
            if kept is None:
                raise NotAuthorized(f"{market}: the project {project!r} has no credentials any more")
            return {name: value.get_secret_value() for name, value in kept.items()}

        return await self.openers[market](values, owner_mark(self.owner, project))

    async def _close(self, name: str) -> None:
        self._versions.pop(name, None)
        gone = self.opened.pop(name, None)
        if gone is not None:
            await gone.close()


async def holders(session: AsyncSession, markets: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Of each market, the projects that have credentials of their own there, by name."""
    query = select(col(CredentialRow.market), col(CredentialRow.project)).where(col(CredentialRow.market).in_(markets))
    found: dict[str, tuple[str, ...]] = {}
    for market, project in (await session.execute(query.order_by(col(CredentialRow.project)))).all():
        found[market] = (*found.get(market, ()), project)
    return found
