"""Which of a provider's accounts the house's machines run in, and that no login of another one speaks for them.

Settings and environment can be changed by anybody who starts the broker. What was agreed here lies in the database: at the
first answer, and whenever no machine is left (nor may turn up), it is the account of the login in use; while machines run, only
a person gives it up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import structlog
from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from broker.database import Database
from broker.tables import HouseAccount
from jobs.clock import db_now
from ledger.book import lock
from markets import rentals
from markets.errors import AccountChanged
from markets.tables import PollRow

log = structlog.get_logger()
# Lists of EC2 lag by seconds to minutes. For so long a create whose answer was lost may still have made a machine, though no
# list had it and its intent was given up: a login of another account would never find it.
DOUBT_US = 3600 * 1_000_000


class NotGivenUp(Exception):
    """The account is not the one that is held, or no login of another one was seen."""


@dataclass(frozen=True)
class HouseAccounts:
    """The accounts of all markets that have some. `hold` is what their adapters ask (`markets/held_account.py`)."""

    database: Database

    async def hold(self, market: str, told: str) -> None:
        """Agree that our machines at `market` are in the account `told`, which its login is of. Not inside a transaction.

        Raises AccountChanged when machines run in another one.
        """
        async with self.database.transaction() as session:
            row = await session.get(HouseAccount, market)
        if row is not None and row.account == told and row.other is None:
            return
        async with self.database.transaction() as session:
            refused = await _agree(session, market, told)
        if refused:
            raise AccountChanged(refused)

    async def give_up(self, market: str, account: str, *, by: str) -> HouseAccount | None:
        """Leave the machines in `account` to themselves and go over to that of the login; None: nothing is held there. The next
        sweeps write them off as lost. `by` is the principal.

        Raises NotGivenUp.
        """
        async with self.database.transaction() as session:
            await lock(session)
            row = await _locked(session, market)
            if row is None:
                return None
            if row.account != account:
                raise NotGivenUp(f"the house's account at {market} is {row.account}, not {account}")
            if row.other is None:
                raise NotGivenUp(f"no login of another account than {account} was seen at {market}")
            left = len(await rentals.open_rentals(session, market))
            row.account, row.since_us = row.other, await db_now(session)
            row.other, row.other_us, row.before, row.given_up_by = None, None, account, by
            await _ask_again(session, market)
        log.warning("account.given_up", market=market, account=account, now=row.account, machines=left, by=by)
        return row


async def held(session: AsyncSession) -> Sequence[HouseAccount]:
    """All that are held, by market."""
    return (await session.scalars(select(HouseAccount).order_by(col(HouseAccount.market)))).all()


def refusal(row: HouseAccount) -> str | None:
    """Why a market is not dealt with, in words that say how to mend it; None: it is.

    >>> refusal(HouseAccount(market="aws", account="111", since_us=0))
    >>> refusal(HouseAccount(market="aws", account="111", since_us=0, other="222"))[:79]
    'aws: our machines run in the account 111, and the login is of 222: start the br'
    """
    if row.other is None:
        return None
    return (
        f"{row.market}: our machines run in the account {row.account}, and the login is of {row.other}: start the broker with a "
        f"login of {row.account}, or leave them there for good (`broker credentials give-up {row.market} {row.account}`)"
    )


async def _agree(session: AsyncSession, market: str, told: str) -> str | None:
    """The refusal, or None. Behind the lock that intents take: none is written while the machines are counted."""
    await lock(session)
    row, now_us = await _locked(session, market), await db_now(session)
    if row is None:
        session.add(HouseAccount(market=market, account=told, since_us=now_us))
        log.info("account.held", market=market, account=told)
        return None
    if row.account != told and (running := await _machines(session, market, now_us)):
        if row.other != told:
            row.other, row.other_us = told, now_us
            log.error("account.changed", market=market, account=row.account, login=told, machines=running)
        return refusal(row)
    if row.account != told:
        log.warning("account.left", market=market, account=row.account, now=told)
        row.before, row.given_up_by, row.account, row.since_us = row.account, None, told, now_us
    if row.other is not None:
        row.other, row.other_us = None, None
        await _ask_again(session, market)
    return None


async def _machines(session: AsyncSession, market: str, now_us: int) -> int:
    """How many there are, or may still turn up."""
    running = len(await rentals.open_rentals(session, market))
    return running + await rentals.doubtful(session, market, since_us=now_us - DOUBT_US)


async def _locked(session: AsyncSession, market: str) -> HouseAccount | None:
    return await session.get(HouseAccount, market, with_for_update=True, populate_existing=True)


async def _ask_again(session: AsyncSession, market: str) -> None:
    """The market's next poll need not wait: what it had against us is over."""
    await session.execute(update(PollRow).where(col(PollRow.market) == market).values(again_us=None))
