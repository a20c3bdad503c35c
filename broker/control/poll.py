"""Polling: each market is asked for its offers at its own interval, by a loop of its own; one that hangs or fails hurts nobody
else, and a failed poll refreshes nothing."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import structlog
from sqlalchemy.exc import DataError, DBAPIError

from broker.database import UNAVAILABLE
from broker.leadership import Deposed
from broker.price_ages import every_s
from broker.services import Services
from jobs.clock import db_now
from markets import price_book
from markets.cadence import SECOND_US, circuit, is_due, wait_s
from markets.errors import MarketsError, NotAuthorized
from markets.market import PriceSource
from markets.offer import Offer
from markets.tables import PollRow

log = structlog.get_logger()
# An answer may take as long as the interval, within these bounds: seconds.
LEAST_PATIENCE_S, MOST_PATIENCE_S = 5.0, 120.0
MOST_ERROR_CHARS = 300
# Of how many projects' logins a poll tries one after the other when they are refused.
MOST_LOGINS = 5


@dataclass
class MarketPoll:
    """One market's poll. `step` is what its loop runs."""

    services: Services
    name: str
    source: PriceSource

    @property
    def every_s(self) -> float:
        return every_s(self.services, self.name)

    async def step(self) -> None:
        """Ask, unless the market is to be left alone (until later, or for want of credentials), and write down the answer or the
        failure."""
        if self.services.market(self.name) is None and not await self.services.providers.wants(self.name):
            return
        async with self.services.database.transaction() as session:
            row = await session.get(PollRow, self.name)
            due = row is None or is_due(row.again_us, await db_now(session))
            failures = row.failures if row else 0
            if due:
                await self.services.providers.rates.look(session, self.services.settings, await db_now(session))
        if due:
            await self._poll(failures)
            self.services.nudge("plan")

    async def _poll(self, failures: int) -> None:
        patience_s = min(MOST_PATIENCE_S, max(LEAST_PATIENCE_S, self.every_s))
        try:
            async with asyncio.timeout(patience_s):
                offers = await self._asked()
            async with self.services.database.transaction() as session:
                await price_book.store_offers(session, self.name, offers, now_us=await db_now(session))
        # The house's own trouble is no market's failure: nothing is held against it, and the loop says what it is.
        except (*UNAVAILABLE, Deposed):
            raise
        except MarketsError as failure:
            await self._failed(failure, f"{failure.code}: {failure}", failures)
        except TimeoutError as failure:
            await self._failed(failure, f"no answer within {patience_s:g} s", failures)
        except OSError as failure:
            await self._failed(failure, f"{type(failure).__name__}: {failure}", failures)
        # A key twice, another market's, or a number that no column holds: nothing of this answer can be trusted.
        except (ValueError, ArithmeticError, DataError) as bad:
            await self._failed(bad, f"bad answer: {_in_short(bad)}", failures)
        # The one boundary where anything may come: an adapter meets whatever a provider invents. What is not recorded here
        # goes on as if all were well: asked again at every tick, while `broker markets` shows the last good answer.
        except Exception as defect:
            log.exception("offers.poll_defect", market=self.name)
            await self._failed(defect, f"defect: {type(defect).__name__}: {_in_short(defect)}", failures)

    async def _asked(self) -> list[Offer]:
        """With the login of one project after the other, where it is projects' logins and one is refused."""
        lender = self.services.providers.lenders.get(self.name)
        tried = 0
        while True:
            try:
                return await self.source.offers()
            except NotAuthorized as failure:
                tried += 1
                if lender is None or not lender.refused(f"{failure.code}: {failure}") or tried >= MOST_LOGINS:
                    raise

    async def _failed(self, failure: Exception, error: str, failures: int) -> None:
        again_s = wait_s(self.every_s, failures + 1, failure)
        async with self.services.database.transaction() as session:
            now_us = await db_now(session)
            again_us = now_us + round(again_s * SECOND_US)
            await price_book.poll_failed(session, self.name, error=error, now_us=now_us, again_us=again_us)
        if circuit(failures + 1) == "open" and circuit(failures) != "open":
            log.warning("offers.circuit_open", market=self.name, failures=failures + 1, again_s=round(again_s))


def _in_short(error: Exception) -> str:
    """The first of what an error says: a database's goes on with the statement and all rows of it."""
    said = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
    return (str(said) or type(said).__name__).splitlines()[0][:MOST_ERROR_CHARS]


# The loop that polls projects' own accounts. Nobody waits for it to be ready (`prices:`); one that hangs holds up its kind alone.
ACCOUNTS = "prices:own-accounts"


@dataclass
class AccountPoller:
    """Each account of a project, by itself: one with a key that is refused is left alone for longer and longer, and says so."""

    services: Services

    async def step(self) -> None:
        await self.services.accounts.refresh()
        await self.services.accounts.learn()
        opened = self.services.accounts.opened
        await asyncio.gather(*(MarketPoll(self.services, name, market).step() for name, market in list(opened.items())))


@dataclass
class Poller:
    """All polls at once, for whoever does not wait for the loops."""

    services: Services

    async def step(self) -> None:
        await asyncio.gather(
            *(poll.step() for poll in polls(self.services).values()), AccountPoller(self.services).step()
        )


def polls(services: Services) -> dict[str, MarketPoll]:
    """The poll of each market that is rented at or whose prices can be read, by the name of its loop. Who waits for the broker to
    be ready waits for the first polls of those that are rented at, and of no others."""
    rented = {f"poll:{name}": MarketPoll(services, name, market) for name, market in services.markets.items()}
    read = {
        f"prices:{name}": MarketPoll(services, name, source)
        for name, source in services.providers.sources.items()
        if name not in services.markets
    }
    return rented | read
