"""Whether a price of tokens can be meant: bounds, comparison with other markets that sell the model, and with before. Pure.

What it catches is a unit misread (a price a token or a thousand taken for one a million, cents for dollars), a placeholder and a
promotion that is none. A price that fails is quarantined with the reason and stays listed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from statistics import median

from markets.offer import Offer, TokenPrice

# USD a million: the smallest models go for half a cent, the dearest list price ever was 600 for output (o1-pro, 2025).
LEAST, MOST = Decimal("0.001"), Decimal(1000)
# Of what a request reads and writes: three of four tokens are read.
READ, WRITTEN = Decimal("0.75"), Decimal("0.25")
# Against the median of other markets that sell the same model: speed and precision make threefold, nothing makes tenfold.
TENFOLD = 10
PEERS = 3
# Against the same offer before, unless it says so twice. (DeepSeek fell fourfold in a day, 2025-09.)
JUMP = 8

Sold = tuple[str, str]


@dataclass(frozen=True, slots=True)
class TokenGround:
    """What a token price is compared with: believed prices of the same offers by key, other markets' lowest by what is sold."""

    before: Mapping[str, TokenPrice]
    others: Mapping[Sold, Mapping[str, Decimal]]


def sold(offer: Offer) -> Sold:
    """What is bought: the model by the last part of its name, whatever its capitals, and whether at once or as a batch.

    `meta-llama/Llama-3.3-70B-Instruct` and `llama-3.3-70b-instruct` are one model; a name that differs is another.
    """
    if offer.endpoint is None:
        return (offer.key.sku.rpartition("/")[2].casefold(), "sync")
    return (offer.endpoint.serves.rpartition("/")[2].casefold(), offer.endpoint.mode)


def blended(price: TokenPrice) -> Decimal:
    """USD a million tokens of a usual mixture of read and written ones."""
    return price.input * READ + price.output * WRITTEN


def implausible_tokens(offer: Offer, ground: TokenGround) -> str | None:
    """Why the price of a believed token offer cannot be meant, or None."""
    price = offer.per_million
    if price is None or offer.currency != "USD":
        return None
    others = {market: each for market, each in ground.others.get(sold(offer), {}).items() if market != offer.market}
    why = _out_of_bounds(price) or _against(blended(price), others) or _jumped(price, ground.before.get(str(offer.key)))
    return why and (
        f"offer {offer.key}: {price.input} USD a million in and {price.output} out is implausible ({why}); quarantined "
        f"(source: {offer.source})"
    )


def _out_of_bounds(price: TokenPrice) -> str | None:
    for name, amount in (("input", price.input), ("output", price.output)):
        if not LEAST <= amount <= MOST:
            return f"{name} outside of {LEAST} to {MOST}"
    return None


def _against(own: Decimal, others: Mapping[str, Decimal]) -> str | None:
    if len(others) < PEERS:
        return None
    middle = median(others.values())
    if middle <= own * TENFOLD <= middle * TENFOLD * TENFOLD:
        return None
    side = "below a tenth of" if own < middle else "above tenfold"
    return f"{side} {middle.normalize():f}, the median of {len(others)} other markets that sell it"


def _jumped(price: TokenPrice, before: TokenPrice | None) -> str | None:
    if before is None:
        return None
    for name, now, then in (("input", price.input, before.input), ("output", price.output, before.output)):
        if then > 0 and not then <= now * JUMP <= then * JUMP * JUMP:
            return f"{name} was {then} before; believed when the market says it again"
    return None
