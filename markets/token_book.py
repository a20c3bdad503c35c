"""The believed prices of tokens in the book, for the next poll to be compared with."""

from __future__ import annotations

from decimal import Decimal

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from markets.offer import TokenPrice
from markets.offer_record import offer_from_record
from markets.tables import OfferRow
from markets.token_plausibility import Sold, TokenGround, blended, sold


async def token_ground(session: AsyncSession) -> TokenGround:
    """Of all offers that are listed and not doubted. A catalogue has hundreds of them, and a poll of one an hour reads them."""
    query = select(col(OfferRow.key), col(OfferRow.market), col(OfferRow.record)).where(
        col(OfferRow.pricing) == "token", col(OfferRow.gone_us).is_(None), col(OfferRow.quarantined).is_(None)
    )
    before: dict[str, TokenPrice] = {}
    others: dict[Sold, dict[str, Decimal]] = {}
    for key, market, record in (await session.execute(query)).all():
        offer = offer_from_record(record)
        if offer.per_million is None or offer.currency != "USD":
            continue
        before[key] = offer.per_million
        of_market = others.setdefault(sold(offer), {})
        price = blended(offer.per_million)
        of_market[market] = min(price, of_market.get(market, price))
    return TokenGround(before, others)
