"""Machines that several aggregators sell: the cheapest counts, the others are listed with where it is. Pure.

Shadeform and Prime Intellect both resell Hyperstack, Nebius, Crusoe and others: counted twice, a plan has room that is not
there. Against markets that are asked directly their offers stand back anyhow (`markets.sources.resold`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal

from markets.offer import Offer

AGGREGATORS = frozenset({"shadeform", "prime-intellect"})
# How old another aggregator's word may be to stand against one of now: seconds.
FRESH_S = 3_600
_SAYS = "the same machines are sold at"
_NOT_A_NAME = re.compile(r"[^a-z0-9]+")

Kind = tuple[str, str, int, str, str]


@dataclass(frozen=True, slots=True)
class Resold:
    """Another aggregator's offer of a kind of machine: where it is, as far as was said, and what it costs."""

    key: str
    market: str
    place: str
    price: Decimal


def kind_of(offer: Offer) -> Kind | None:
    """Whose machines, with which devices, sold how, in which country. None where one is not known."""
    chip = offer.accelerator
    if offer.operator is None or offer.country is None or chip.count < 1 or offer.price is None:
        return None
    return (_name(offer.operator), f"{chip.name}/{chip.form or ''}", chip.count, offer.pricing, offer.country)


def is_stood_back(reason: str | None) -> bool:
    """Whether an offer is quarantined for nothing but a cheaper seller: it still stands against others."""
    return reason is not None and _SAYS in reason


def gathered(others: Iterable[Offer]) -> Mapping[Kind, list[Resold]]:
    found: dict[Kind, list[Resold]] = {}
    for offer in others:
        kind = kind_of(offer)
        if kind is not None and offer.price is not None:
            found.setdefault(kind, []).append(Resold(str(offer.key), offer.market, _place(offer), offer.price))
    return found


def cheaper_elsewhere(offer: Offer, others: Mapping[Kind, list[Resold]]) -> str | None:
    """Why `offer` is not to be counted beside another aggregator's, or None. At one price the first market by name counts."""
    kind = kind_of(offer)
    if kind is None or offer.price is None:
        return None
    place, mine = _place(offer), (offer.price, offer.market)
    better = [
        each
        for each in others.get(kind, ())
        if each.market != offer.market and _is_same(place, each.place) and (each.price, each.market) < mine
    ]
    if not better:
        return None
    best = min(better, key=lambda each: (each.price, each.key))
    return f"offer {offer.key}: {_SAYS} {best.price.normalize():f} USD an hour as {best.key}; that one counts"


def _place(offer: Offer) -> str:
    return _name(offer.key.zone or offer.key.region or "")


def _is_same(one: str, other: str) -> bool:
    """Of two places of one country: `canada-1` and `CANADA-1` are one; who says less (`canada`, nothing) may mean either."""
    return one.startswith(other) or other.startswith(one)


def _name(text: str) -> str:
    return _NOT_A_NAME.sub("", text.casefold())
