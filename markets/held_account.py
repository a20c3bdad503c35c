"""A market whose login is held to one account of the provider's.

A login of another account is let in all the same, and sees a list that is complete and without any of our machines: they were
taken for gone, never seen again, and billed for ever. So nothing that another account says is an answer here.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol, TypeVar

from markets.errors import RentalNotFound
from markets.market import Charge, Intent, Market, Released, Rental
from markets.offer import Offer

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
    keys are renewed), therefore what is concluded from an absence is asked about before and after."""

    inner: AccountTeller
    hold: Hold
    name: str = field(init=False)

    def __post_init__(self) -> None:
        self.name = self.inner.name

    async def offers(self) -> list[Offer]:
        await self._held()
        return await self.inner.offers()

    async def rent(self, offer: Offer, intent: Intent) -> Rental:
        """As the market's own. AccountChanged: nothing was created."""
        await self._held()
        return await self.inner.rent(offer, intent)

    async def rental(self, tag: str) -> Rental:
        """As the market's own."""
        return await self._asked(lambda: self.inner.rental(tag))

    async def rentals(self) -> list[Rental]:
        """As the market's own."""
        return await self._asked(self.inner.rentals)

    async def release(self, tag: str) -> Released:
        """As the market's own."""
        return await self._asked(lambda: self.inner.release(tag))

    async def charges(self, from_at: datetime, to_at: datetime) -> list[Charge]:
        """As the market's own."""
        return await self._asked(lambda: self.inner.charges(from_at, to_at))

    async def close(self) -> None:
        await self.inner.close()

    async def _held(self) -> None:
        await self.hold(await self.inner.account())

    async def _asked(self, ask: Callable[[], Awaitable[T]]) -> T:
        await self._held()
        try:
            answer = await ask()
        except RentalNotFound:
            await self._held()
            raise
        await self._held()
        return answer
