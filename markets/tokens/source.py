"""A token endpoint by its price card: the shipped one, or a file of one's own, read anew at each poll."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from functools import cache
from importlib.resources import files
from pathlib import Path

from markets.errors import BadCard, Unsupported
from markets.offer import Offer
from markets.tokens.card import Card, card_offers, read_card, read_file


class CardSource:
    """The market `name`. `file` replaces the shipped card of that name, `base_url` the address in it."""

    def __init__(self, name: str, file: Path | None = None, *, base_url: str | None = None) -> None:
        self.name = name
        self._file = file
        self._base_url = base_url

    async def offers(self) -> list[Offer]:
        """Raises BadCard, and Unsupported when the card has no prices in it."""
        card = await asyncio.to_thread(read_file, self._file) if self._file else shipped_card(self.name)
        if card.market != self.name:
            raise BadCard(f"price card of {self.name}: it says market = {card.market!r}; it must be {self.name!r}")
        if not card.models:
            raise Unsupported(f"{self.name}: {_no_prices(self.name)}")
        return card_offers(replace(card, base_url=self._base_url or card.base_url))

    async def close(self) -> None:
        """Nothing is open."""


def template_words(market: str) -> str | None:
    """Why the shipped card of `market` prices nothing; None: it has prices."""
    return None if shipped_card(market).models else _no_prices(market)


def _no_prices(market: str) -> str:
    return (
        "its price card is a template without prices; copy it, add [[models]] with the prices that you pay, and name the "
        f"file in providers.{market}.card"
    )


@cache
def shipped_card(market: str) -> Card:
    """Raises BadCard for a market without one, naming those that have one."""
    if market not in shipped_cards():
        raise BadCard(f"no price card of {market!r} is shipped; there are {', '.join(shipped_cards())}")
    text = files("markets.tokens").joinpath("cards", f"{market}.toml").read_text(encoding="utf-8")
    return read_card(text, f"{market}.toml (shipped)")


@cache
def shipped_cards() -> tuple[str, ...]:
    """The markets that have a card of ours, by name."""
    found = (each.name for each in files("markets.tokens").joinpath("cards").iterdir())
    return tuple(sorted(name.removesuffix(".toml") for name in found if name.endswith(".toml")))
