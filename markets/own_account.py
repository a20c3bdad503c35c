"""A market with somebody's own account: the same machines, another login, another list of rentals, another bill.

To the rest of the house it is a market of its own, called `MARKET~HOLDER`: its offers, prices, failures, rentals and books are
kept apart by that name. The machines carry an owner mark of their own, too, so that two holders of one login, or a holder who
shares the house's, never see (and never end) each other's.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime

from markets.errors import PartialList
from markets.market import Charge, Intent, Market, Released, Rental
from markets.offer import ACCOUNT, Offer, OfferKey


def account_name(market: str, holder: str) -> str:
    """
    >>> account_name("aws", "acme")
    'aws~acme'
    """
    return f"{market}{ACCOUNT}{holder}"


def holder_of(market: str) -> str | None:
    """Whose account a market's name means; None: the house's.

    >>> holder_of("aws~acme"), holder_of("aws")
    ('acme', None)
    """
    return market.partition(ACCOUNT)[2] or None


def provider_of(market: str) -> str:
    """
    >>> provider_of("aws~acme"), provider_of("aws")
    ('aws', 'aws')
    """
    return market.partition(ACCOUNT)[0]


def owner_mark(owner: str, holder: str) -> str:
    """What marks the machines of the account."""
    return f"{owner}{ACCOUNT}{holder}"


@dataclass
class AccountMarket:
    """`inner` under the name of the account. `owner` is the mark that `inner` was made with."""

    name: str
    owner: str
    inner: Market

    async def offers(self) -> list[Offer]:
        return [self._of_account(each) for each in await self.inner.offers()]

    async def rent(self, offer: Offer, intent: Intent) -> Rental:
        """As the market's own."""
        theirs = replace(offer, key=replace(offer.key, market=self.inner.name))
        return self._named(await self.inner.rent(theirs, replace(intent, owner=self.owner)))

    async def rental(self, tag: str) -> Rental:
        """As the market's own."""
        return self._named(await self.inner.rental(tag))

    async def rentals(self) -> list[Rental]:
        """As the market's own."""
        try:
            return [self._named(each) for each in await self.inner.rentals()]
        except PartialList as cut:
            raise PartialList(str(cut), found=[self._named(each) for each in cut.found]) from cut

    async def release(self, tag: str) -> Released:
        """As the market's own."""
        return await self.inner.release(tag)

    async def charges(self, from_at: datetime, to_at: datetime) -> list[Charge]:
        """As the market's own."""
        found = await self.inner.charges(from_at, to_at)
        return [replace(each, offer_key=self._ours(each.offer_key)) for each in found]

    async def close(self) -> None:
        await self.inner.close()

    def _of_account(self, offer: Offer) -> Offer:
        quota = offer.quota and replace(offer.quota, group=f"{self.name}: {offer.quota.group}")
        return replace(offer, key=self._ours(offer.key), quota=quota)

    def _ours(self, key: OfferKey) -> OfferKey:
        return replace(key, market=self.name)

    def _named(self, rental: Rental) -> Rental:
        return replace(rental, offer_key=self._ours(rental.offer_key))
