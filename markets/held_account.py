"""A market whose login is held to one account of the provider's.

A login of another account is let in all the same, and sees a list that is complete and without any of our machines: they were
taken for gone, never seen again, and billed for ever. So nothing that another account says is an answer here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Protocol, TypeVar

import structlog

from markets.errors import (
    AccountChanged,
    Ambiguous,
    MarketsError,
    PriceMoved,
    RateLimited,
    RentalNotFound,
    StillReleasing,
    Unavailable,
)
from markets.market import Charge, Intent, Market, Released, Rental
from markets.offer import Offer

log = structlog.get_logger()
T = TypeVar("T")
# Given what the provider calls the account of the login in use. Raises AccountChanged when our machines run in another one.
Hold = Callable[[str], Awaitable[None]]


class AccountTeller(Market, Protocol):
    """A market that can say whose login it uses."""

    async def account(self) -> str:
        """What the provider calls the account of the login that is in use now."""
        ...


@dataclass
class HeldMarket:
    """`inner`, asked only while its login is of the account that `hold` agrees to: every method may raise AccountChanged, and
    Unavailable when the provider does not say whose the login is. A login can be exchanged in the middle of a call (a role's
    keys are renewed), therefore what is concluded from an absence, and what was created, is asked about before and after.
    `within_s`: so long the provider may take to say it where a machine costs on meanwhile."""

    inner: AccountTeller
    hold: Hold
    within_s: float = 10
    name: str = field(init=False)

    def __post_init__(self) -> None:
        self.name = self.inner.name

    async def offers(self) -> list[Offer]:
        await self._held()
        return await self.inner.offers()

    async def rent(self, offer: Offer, intent: Intent) -> Rental:
        """As the market's own. AccountChanged: nothing was created. PriceMoved is no proof of that: EC2's spot price is looked at
        after the creation, too. When the login was exchanged meanwhile, what it made is
        released there, for no list of ours will ever have it: the answer is a rental that has ended, whose cost is owed, or
        Ambiguous where nobody knows of one."""
        await self._held()
        try:
            rental = await self.inner.rent(offer, intent)
        except (Ambiguous, Unavailable, RateLimited, PriceMoved):
            if over := await self._ended_elsewhere(intent.tag):
                return over
            raise
        return await self._ended_elsewhere(intent.tag) or rental

    async def rental(self, tag: str) -> Rental:
        """As the market's own."""
        return await self._asked(lambda: self.inner.rental(tag))

    async def rentals(self) -> list[Rental]:
        """As the market's own."""
        return await self._asked(self.inner.rentals)

    async def release(self, tag: str) -> Released:
        """As the market's own. It is asked for, and nothing concluded, also while the provider does not say whose the login is:
        the machine would cost on, and no other account's carries our tag."""
        try:
            await self._held_soon()
        except (Unavailable, RateLimited):
            with suppress(RentalNotFound, StillReleasing):  # whose answer it is, nobody said
                await self.inner.release(tag)
            raise
        return await self._asked(lambda: self.inner.release(tag))

    async def charges(self, from_at: datetime, to_at: datetime) -> list[Charge]:
        """As the market's own."""
        return await self._asked(lambda: self.inner.charges(from_at, to_at))

    async def close(self) -> None:
        await self.inner.close()

    async def _held(self) -> None:
        await self.hold(await self.inner.account())

    async def _held_soon(self) -> None:
        try:
            async with asyncio.timeout(self.within_s):
                account = await self.inner.account()
        except TimeoutError as silence:
            raise Unavailable(f"{self.name}: whose the login is was not said within {self.within_s:g} s") from silence
        await self.hold(account)

    async def _ended_elsewhere(self, tag: str) -> Rental | None:
        """What was created as `tag` in another account, as the login is of that now, and was ended there. None: it is the same
        account. That nobody says whose it is takes nothing back: the next list is asked about again.

        Raises Ambiguous when there is none that is ending."""
        try:
            await self._held_soon()
        except AccountChanged as changed:
            failure = f"{self.name}: the login was exchanged while {tag} was created, perhaps in its account: {changed}"
            over = await self._released_there(tag, failure)
            if over is None:
                raise Ambiguous(failure) from changed
            return over
        except MarketsError as unknown:
            log.warning("rent.account_unknown", rental=tag, market=self.name, error=f"{unknown.code}: {unknown}")
        return None

    async def _released_there(self, tag: str, why: str) -> Rental | None:
        over, told = None, "released"
        try:
            with suppress(StillReleasing):
                await self.inner.release(tag)
            over = await self.inner.rental(tag)
        except MarketsError as answer:
            # a person looks there, and a machine that no broker answers ends itself
            told = f"{answer.code}: {answer}"
        log.error("rent.account_changed", rental=tag, market=self.name, error=why, release=told)
        if over is None or over.state not in ("releasing", "ended"):
            return None
        # nobody will ask there again when it was over; EC2 bills until an instance begins to end
        return replace(
            over, state="ended", ended_at=over.ended_at or over.seen_at, end_reason=over.end_reason or "released"
        )

    async def _asked(self, ask: Callable[[], Awaitable[T]]) -> T:
        await self._held()
        try:
            answer = await ask()
        except RentalNotFound:
            await self._held()
            raise
        await self._held()
        return answer
