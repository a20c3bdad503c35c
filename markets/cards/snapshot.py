"""The dated snapshot of real prices that ships with the package: what `offers` shows of a market before anybody has asked it.

It is for looking and comparing: nothing is rented by it, and each offer says of which day it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from importlib.resources import files

from markets.cards.rate_card import read_card
from markets.errors import BadOffer
from markets.offer import Offer


@cache
def snapshot() -> tuple[Offer, ...]:
    """All its offers. Raises BadOffer when the shipped file is damaged."""
    text = files("markets.cards").joinpath("snapshot.csv").read_text(encoding="utf-8")
    epoch = datetime.fromtimestamp(0, UTC)  # each row has its own day
    card = read_card(text, market="snapshot", observed_at=epoch, source="snapshot", of_many=True)
    if card.findings or not card.offers:
        first = card.findings[0] if card.findings else None
        raise BadOffer(f"the shipped snapshot of prices cannot be read: {first}")
    return card.offers


@cache
def by_market() -> Mapping[str, tuple[Offer, ...]]:
    found: dict[str, list[Offer]] = {}
    for offer in snapshot():
        found.setdefault(offer.market, []).append(offer)
    return {market: tuple(offers) for market, offers in found.items()}


def why_not(offer: Offer) -> str:
    """What is said of an offer of the snapshot where others say why they cannot be chosen."""
    return f"offer {offer.key}: a price of the snapshot of {offer.observed_at:%Y-%m-%d}, not a live one; nothing is rented by it"
