"""Rate cards: prices that a person hands in, taken over whole or not at all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from sqlalchemy.ext.asyncio import AsyncSession

from broker.api import market_shapes
from broker.api.problems import bad_request, conflict
from broker.api.registry import Call, Route, route
from broker.rates_of_day import fx_rates
from broker.services import Services
from jobs.clock import MICROSECONDS, db_now
from markets import price_book
from markets.cards.rate_card import Card, read_card
from markets.history import DAY_US
from markets.hourly import FxRate
from markets.instants import micros, moment
from markets.offer import Offer

# So many of a card's quarantined offers are told with their reasons; the others are in the list of offers.
MOST_DOUBTS = 20


async def import_card(call: Call, body: market_shapes.CardImport) -> market_shapes.CardImported:
    """Take over a rate card: CSV of ours, of gpuhunt or of SkyPilot. With a finding nothing is taken over.

    Its offers are listed, compared with and quoted; a newer card of the same name replaces them.
    """
    services = call.services
    await _require_free(services, body.market)
    async with services.database.transaction() as session:
        now_us = await db_now(session)
        at_us = _observed_us(body, now_us)
        until_us = at_us + (body.valid_days or services.settings.prices.card_days) * DAY_US
        card = _read(body, at_us, now_us, await fx_rates(session, services.settings, now_us))
        if not card.findings:
            await _require_newest(session, card.offers)
        stored = not card.findings and not body.dry_run
        doubts = [(str(each.key), each.quarantined) for each in card.offers if each.quarantined is not None]
        quarantined = len(doubts)
        if stored:
            taken = await price_book.store_card(
                session, body.market, card.offers, by=call.caller.name, until_us=until_us, now_us=now_us
            )
            quarantined = taken.quarantined
            doubts = await price_book.quarantined(session, body.market, limit=MOST_DOUBTS)
    return market_shapes.CardImported(
        market=body.market,
        dialect=card.dialect,
        offers=len(card.offers),
        quarantined=quarantined,
        valid_until=until_us // MICROSECONDS,
        stored=stored,
        findings=[
            market_shapes.CardFinding(line=each.line, code=each.code, message=each.message) for each in card.findings
        ],
        doubted=[market_shapes.CardDoubt(key=key, reason=reason) for key, reason in doubts[:MOST_DOUBTS]],
    )


async def _require_free(services: Services, market: str) -> None:
    """A card beside a market's own answers would undo them with each import, and they it with each poll."""
    if market in services.settings.markets or market in await services.providers.wanted():
        raise conflict(
            "market_is_polled",
            f"The market {market!r} is asked itself; give the card another name, such as {market}-card.",
        )


async def _require_newest(session: AsyncSession, offers: Sequence[Offer]) -> None:
    """The book keeps the newest price of each offer: an older card would be said to be taken over, and change nothing."""
    newer = await price_book.newer(session, offers)
    if newer:
        key, at = newer[0]
        raise conflict(
            "card_is_older",
            f"The price of {key} is known as of {at.isoformat(timespec='seconds')}, and this card's is older; say a later day "
            "(`observed_on`), or give the card another name (`market`).",
            "observed_on",
        )


def _read(body: market_shapes.CardImport, at_us: int, now_us: int, fx: Mapping[str, FxRate]) -> Card:
    return read_card(
        body.text,
        market=body.market,
        observed_at=moment(at_us),
        source=body.source,
        provider=body.provider,
        fx=fx,
        now=moment(now_us),
    )


def _observed_us(body: market_shapes.CardImport, now_us: int) -> int:
    """The start of the day that is said; today is now."""
    today = moment(now_us).date()
    if body.observed_on is None or body.observed_on == today:
        return now_us
    if body.observed_on > today:
        raise bad_request(
            "day_to_come",
            f"observed_on is {body.observed_on}, which is to come: today is {today} (UTC).",
            "observed_on",
        )
    return micros(datetime.combine(body.observed_on, datetime.min.time(), UTC))


ROUTES: tuple[Route, ...] = (
    route("POST", "/v1/market/cards", import_card, tag="market", roles=("operator",), of_house=True, errors=(400, 422)),
)  # fmt: skip
