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
from pydantic import SecretStr
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from broker.credentials import Credentials, Kept
from broker.envelope import Unopenable
from broker.vault_tables import CredentialRow
from markets.errors import MarketsError, NotAuthorized
from markets.market import Market
from markets.own_account import AccountMarket, account_name, owner_mark

log = structlog.get_logger()
# Somebody waits for the answer at the other end of a request.
TELL_S = 15.0

# Gives a project's values whenever the adapter logs in anew. NotAuthorized: there are none, or they cannot be opened.
Values = Callable[[], Awaitable[Mapping[str, str]]]
# Makes a market's adapter for the login that `Values` gives, with this mark on its machines.
Opener = Callable[[Values, str], Awaitable[Market]]
# Asks a provider what it calls the account of this login. Raises MarketsError.
Teller = Callable[[Mapping[str, str]], Awaitable[str]]


@dataclass
class Accounts:
    """`openers` by market: where projects can rent by themselves; `tellers` say whose login is whose. `opened` by the account's
    name is what `refresh` left.

    Several loops refresh: one at a time, and an account is never without an adapter while its credentials change, for without
    one its machines would be taken for those of a market that nobody has configured.
    """

    credentials: Credentials | None = None
    owner: str = ""
    openers: Mapping[str, Opener] = field(default_factory=dict)
    tellers: Mapping[str, Teller] = field(default_factory=dict)
    opened: dict[str, Market] = field(default_factory=dict)
    _versions: dict[str, int] = field(default_factory=dict)
    _refreshing: asyncio.Lock = field(default_factory=asyncio.Lock)
    _answered: dict[str, int] = field(default_factory=dict)

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

    async def told(self, market: str, values: Mapping[str, SecretStr]) -> tuple[str | None, str | None]:
        """The provider's account that this login is of, or why that is not known. Not inside a transaction."""
        teller = self.tellers.get(market)
        if teller is None:
            return None, f"this broker does not rent at {market}"
        try:
            return await _asked(teller, values), None
        except MarketsError as failure:
            return None, f"{failure.code}: {failure}"
        except TimeoutError:
            return None, f"no answer within {TELL_S:g} s"

    async def learn(self, only: str | None = None) -> None:
        """Write down the provider's account of what was kept without it. Each login is asked for until its provider
        answers, be it with a refusal, and again for `only` that project, which is about to change it. Not inside a transaction.
        """
        credentials = self.credentials
        if credentials is None:
            return
        for market in self.tellers:
            for kept in await credentials.at_market(market):
                name = account_name(market, kept.project)
                is_due = self._answered.get(name) != kept.version if only is None else only == kept.project
                if kept.account is None and is_due and await self._learn(credentials, kept):
                    self._answered[name] = kept.version

    async def _learn(self, credentials: Credentials, kept: Kept) -> bool:
        """Whether the provider has answered. An outage is no answer: were it taken for one, the account would stay unknown
        until a restart, and any account's key could replace this one while machines run."""
        try:
            values = await credentials.for_project(kept.project, kept.market)
            account = await _asked(self.tellers[kept.market], values or {})
        except (MarketsError, TimeoutError, Unopenable) as failure:
            reason = str(failure) or f"no answer within {TELL_S:g} s"
            log.warning("account.unknown", market=kept.market, project=kept.project, reason=reason)
            return isinstance(failure, NotAuthorized)
        await credentials.learnt(kept, account)
        log.info("account.learnt", market=kept.market, project=kept.project, account=account)
        return True

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


async def _asked(teller: Teller, values: Mapping[str, SecretStr]) -> str:
    """Raises MarketsError, and TimeoutError after `TELL_S`."""
    async with asyncio.timeout(TELL_S):
        return await teller({name: value.get_secret_value() for name, value in values.items()})


async def holders(session: AsyncSession, markets: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Of each market, the projects that have credentials of their own there, by name."""
    query = select(col(CredentialRow.market), col(CredentialRow.project)).where(col(CredentialRow.market).in_(markets))
    found: dict[str, tuple[str, ...]] = {}
    for market, project in (await session.execute(query.order_by(col(CredentialRow.project)))).all():
        found[market] = (*found.get(market, ()), project)
    return found
