"""Which of the price book's offers a plan looks at: what can be rented, and what runs. The rest is counted, not read.

A book of 100,000 rows, most of them gone or of markets whose prices are only read, was decoded for each plan.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from sqlalchemy.ext.asyncio import AsyncSession

from broker.accounts import holders
from broker.price_ages import default_max_age_s, max_ages_s
from broker.services import Services
from markets import price_book
from markets.own_account import account_name, holder_of
from markets.price_book import Listed
from solver.types import Rule

# The solver's word for what the market room excludes: the funnel has one step for all of it.
EXCLUDED = "excluded"


@dataclass(frozen=True, slots=True)
class PlannedOffers:
    """`listed` by key; `refused`: why nothing is rented at a market that is not rented at, or whose prices are a card's;
    `apart`: how many offers were left out, by reason; `holders`: who has an account of his own, by market."""

    listed: list[Listed]
    refused: Mapping[str, str]
    apart: tuple[Rule, ...]
    holders: Mapping[str, tuple[str, ...]]


async def planned_offers(
    session: AsyncSession, services: Services, *, now_us: int, of_rentals: Collection[str], projects: Collection[str]
) -> PlannedOffers:
    """`of_rentals` are keys of offers that are wanted whatever became of them: machines run there. Of projects' own accounts
    only those of `projects` are looked at, and counted."""
    cards = {poll.market: poll.card_by for poll in await price_book.polls(session) if poll.card_by is not None}
    own = await holders(session, list(services.accounts.openers))
    accounts = {account_name(market, who) for market, held in own.items() for who in held if who in projects}
    markets = {name for name in (*services.markets, *accounts) if name not in cards}
    listed = await price_book.offers(
        session,
        now_us=now_us,
        max_age_s=max_ages_s(services),
        default_max_age_s=default_max_age_s(services),
        listed_at=markets,
        also=of_rentals,
    )
    by_market = await price_book.count_by_market(session)
    counted = {name: n for name, n in by_market.items() if holder_of(name) is None or name in markets}
    used = Counter(each.offer.market for each in listed)
    refused = {name: why_not_rented(name, is_card=name in cards) for name in {*counted, *used} - markets}
    apart = tuple(
        Rule(rule=EXCLUDED, count=total - used[name], example=refused.get(name, f"{name!r} no longer lists them"))
        for name, total in sorted(counted.items())
        if total > used[name]
    )
    return PlannedOffers(listed, refused, apart, own)


def why_not_rented(market: str, *, is_card: bool, by: str | None = None) -> str:
    """Of a market that nothing is rented at, or whose prices are those of a card. `by`, who handed it in, is a person of the
    house's: nothing that a project reads names it."""
    if is_card:
        handed_in = f", handed in by {by}" if by else ""
        return f"prices of a card of {market!r}{handed_in}: nothing is rented there before it answers itself"
    return f"prices of {market!r} are read, or of a card; it is not among the markets to rent at (settings: markets)"


def with_apart(steps: Collection[Rule], apart: Collection[Rule]) -> tuple[Rule, ...]:
    """A funnel with what was left out before, in its step of the excluded ones; its counts sum to all offers of the book."""
    if not apart:
        return tuple(steps)
    own = next((step for step in steps if step.rule == EXCLUDED), None)
    count = sum(each.count for each in apart) + (own.count if own else 0)
    example = own.example if own else next(iter(apart)).example
    rest = [step for step in steps if step.rule != EXCLUDED]
    return (Rule(rule=EXCLUDED, count=count, example=example), *rest)


def reasons_with_apart(reasons: Collection[str], apart: Collection[Rule]) -> list[str]:
    """Why a work waits, with what was left out before the plan."""
    return [*reasons, *(f"not planned with ({each.count}): {each.example}" for each in apart)]
