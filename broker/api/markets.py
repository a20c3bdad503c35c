"""All markets that this project knows of, each with what it is good for here and now, and if for nothing, why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from broker.accounts import holders
from broker.api import market_shapes
from broker.api.registry import EVERYONE, Call, Route, route
from broker.house_accounts import held, refusal
from broker.market_standing import Facts, standing
from broker.price_list import offer_counts
from broker.provider_set import Standing
from broker.services import Services
from jobs.clock import MICROSECONDS, db_now
from markets import price_book
from markets.cards import snapshot
from markets.directory import DIRECTORY
from markets.instants import micros
from markets.own_account import account_name, holder_of
from markets.tables import PollRow


async def list_markets(call: Call) -> market_shapes.MarketList:
    """List the markets: class, where prices come from, whether machines can be rented, and what is missing."""
    services = call.services
    standings = {each.provider.name: each for each in await services.providers.standings()}
    async with services.database.transaction() as session:
        now_us = await db_now(session)
        polls = {row.market: row for row in await price_book.polls(session)}
        offers = Counter(await offer_counts(session, services, project=call.project))
        cards = {name for name, row in polls.items() if row.card_by is not None}
        cards |= {name for name, each in standings.items() if each.provider.is_card}
        card_us = await price_book.newest(session, cards)
        refused = {row.market: refusal(row) for row in await held(session)}
        own_keys = await holders(session, list(services.accounts.openers))
    own = {account_name(market, call.project) for market, who in own_keys.items() if call.project in who}
    polls = {name: row for name, row in polls.items() if holder_of(name) is None or name in own}
    names = [*DIRECTORY, *sorted({*services.markets, *own, *standings, *polls, *offers} - set(DIRECTORY))]
    return market_shapes.MarketList(
        data=[
            _market(
                name,
                services,
                name in own,
                standings,
                polls.get(name),
                card_us.get(name),
                refused.get(name),
                offers[name],
                now_us,
                names_people=call.is_house,
            )
            for name in names
        ]
    )


def _market(
    name: str,
    services: Services,
    is_own: bool,
    standings: Mapping[str, Standing],
    poll: PollRow | None,
    card_us: int | None,
    refused: str | None,
    offers: int,
    now_us: int,
    *,
    names_people: bool,
) -> market_shapes.Market:
    is_rented_at = is_own or name in services.markets
    old = snapshot.by_market().get(name, ()) if services.settings.prices.snapshot else ()
    asked = standings.get(name)
    told = standing(
        Facts(
            name=name,
            rented_at=is_rented_at,
            has_adapter=asked is not None,
            why_not_asked=asked.reason if asked else None,
            has_credentials=asked.credentials or asked.provider.is_public if asked else is_rented_at,
            poll=poll,
            snapshot_us=max((micros(each.observed_at) for each in old), default=None),
            now_us=now_us,
            refusal=refused,
            by_card=asked is not None and asked.provider.is_card,
            card_us=card_us,
            names_people=names_people,
        )
    )
    return market_shapes.Market(
        name=name,
        **{"class": asked.provider.kind if asked and name not in DIRECTORY else told.market_class},
        prices=told.prices,
        renting=is_rented_at and refused is None,
        credentials=told.credentials,
        age_s=None if told.as_of_us is None else max(0, now_us - told.as_of_us) // MICROSECONDS,
        offers=offers,
        reason=told.reason,
    )


ROUTES: tuple[Route, ...] = (
    route("GET", "/v1/markets", list_markets, tag="market", roles=EVERYONE),
)  # fmt: skip
