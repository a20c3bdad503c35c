"""How a market stands: where its prices come from, and what keeps it from more. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from markets.cadence import circuit
from markets.directory import DIRECTORY, MarketClass, class_of
from markets.tables import PollRow

Prices = Literal["live", "card", "snapshot", "unsupported"]


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of one market here; `refusal` says why nothing is rented where it could be, `by_card` that its adapter reads
    a price card and asks nobody. `card_us`: of when a card's newest price is, whenever the card
    was read. `names_people`: whoever asks may know of the house's people."""

    name: str
    rented_at: bool
    has_adapter: bool
    why_not_asked: str | None
    has_credentials: bool
    poll: PollRow | None
    snapshot_us: int | None
    now_us: int
    refusal: str | None = None
    by_card: bool = False
    card_us: int | None = None
    names_people: bool = True


@dataclass(frozen=True, slots=True)
class MarketStanding:
    """`as_of_us` is when its prices were last good; None: there are none."""

    market_class: MarketClass
    prices: Prices
    credentials: bool
    as_of_us: int | None
    reason: str | None


def standing(facts: Facts) -> MarketStanding:
    """A card before a poll, a poll before the snapshot, and the reason in the words of whoever refused."""
    poll = facts.poll
    if poll is not None and poll.card_by is not None:
        return _stands(facts, "card", facts.card_us or poll.ok_us, _of_card(poll, facts))
    if poll is not None and poll.ok_us is not None:
        as_of_us = facts.card_us or poll.ok_us
        return _stands(facts, _asked(facts), as_of_us, _of_poll(poll) or facts.why_not_asked)
    reason = (_of_poll(poll) if poll is not None else None) or facts.why_not_asked or _not_built(facts)
    if facts.snapshot_us is not None:
        return _stands(facts, "snapshot", facts.snapshot_us, reason)
    if facts.rented_at or facts.has_adapter:
        return _stands(facts, _asked(facts), None, reason or "not asked yet")
    return _stands(facts, "unsupported", None, reason)


def _asked(facts: Facts) -> Prices:
    return "card" if facts.by_card else "live"


def _stands(facts: Facts, prices: Prices, as_of_us: int | None, reason: str | None) -> MarketStanding:
    return MarketStanding(class_of(facts.name), prices, facts.has_credentials, as_of_us, facts.refusal or reason)


def _of_poll(poll: PollRow) -> str | None:
    if not poll.failures or poll.error is None:
        return None
    held = f"; {poll.failures} failures in a row, asked less often" if circuit(poll.failures) == "open" else ""
    return f"{poll.error}{held}"


def _of_card(poll: PollRow, facts: Facts) -> str | None:
    if poll.card_until_us is not None and poll.card_until_us < facts.now_us:
        return "the rate card is out of date; hand in a newer one with `broker offers import`"
    return f"rate card, handed in by {poll.card_by}" if facts.names_people else "rate card"


def _not_built(facts: Facts) -> str | None:
    known = DIRECTORY.get(facts.name)
    if facts.rented_at or facts.has_adapter:
        return None
    if known is not None and known.missing is not None:
        return known.missing
    if known is not None and known.market_class in ("local", "sandbox", "own", "hyperscaler"):
        return f'not configured: add "{facts.name}" to markets in broker.toml, or hand in a rate card'
    return "no adapter for its prices here; hand in a rate card with `broker offers import`"
