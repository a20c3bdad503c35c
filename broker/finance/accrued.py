"""What the books have as owed to a provider in a month, by what its bill names: machines by rental, bought tokens by model."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from broker.token_costs import rate_of, rate_of_rental, tokens_of
from ledger import accounts
from ledger.book import recorded
from ledger.focus.charge import metered
from ledger.given_back import KEYS
from ledger.reconcile.match import CARD_NOW, Accrued
from ledger.tables import Entry, Posting
from ledger.token_meter import TokenRate, Used, cost_of_tokens, tokens_in
from ledger.units import NANO_PER_TOKEN
from markets.offer import TokenEndpoint
from markets.offer_record import offer_from_record
from markets.tables import OfferRow, RentalRow

_MILLION = 1_000_000


@dataclass(frozen=True, slots=True)
class Subjects:
    """What a bill can be matched to, by rental or model, and what leads there from the names that the bill may use.

    Models are found in small letters: bills write them as they like.
    """

    accrued: Mapping[str, Accrued]
    names: Mapping[str, str]


@dataclass(slots=True)
class _Sum:
    """Of one rental in the month. `keys` are those of its token meter."""

    project: str | None = None
    nano: int = 0
    refund_nano: int = 0
    seconds: int = 0
    keys: list[str] = field(default_factory=list)


async def subjects_of(session: AsyncSession, provider: str, period: str) -> Subjects:
    """Of the provider's whole month. Raises nothing of its own."""
    query = select(RentalRow).where(col(RentalRow.market) == provider)
    rentals = {row.id: row for row in await session.scalars(query)}
    sums = await _sums(session, provider, period)
    tiers = await _tiers(session, provider)
    bought = {rental: _endpoint(row) for rental, row in rentals.items() if row.pricing == "token"}
    machines = {
        rental: _machine(rental, each, rentals.get(rental), tiers)
        for rental, each in sums.items()
        if rental not in bought
    }
    models = await _models(session, provider, sums, {each: rentals[each] for each in bought if each in sums})
    # The machine's own id alone: an owner, a region or a pid is on many machines, and on lines that are not ours.
    names = {str(row.market_facts["id"]): row.id for row in rentals.values() if row.market_facts.get("id")}
    for rental, endpoint in bought.items():
        if endpoint.model in models:
            names |= dict.fromkeys(_names(rentals[rental], endpoint), endpoint.model)
    return Subjects({**machines, **models}, names)


async def _sums(session: AsyncSession, provider: str, period: str) -> dict[str, _Sum]:
    query = (
        select(col(Entry.rental), col(Entry.key), col(Entry.project), col(Posting.nano))
        .join(Posting, col(Posting.entry_id) == col(Entry.id))
        .where(
            col(Entry.period) == period,
            col(Entry.rental).is_not(None),
            col(Posting.account) == accounts.accrued(provider),
            col(Posting.unit) == "USD",
        )
    )
    found: dict[str, _Sum] = defaultdict(_Sum)
    for rental, key, project, nano in (await session.execute(query)).all():
        assert rental is not None
        of = found[rental]
        interval = metered(key, rental)
        of.project = project
        of.nano -= int(nano)
        of.seconds += interval[1] - interval[0] if interval else 0
        if tokens_in(key, rental) is not None:
            of.keys.append(key)
    for rental, nano in await _refunds(session, provider, period):
        found[rental].nano -= nano
        found[rental].refund_nano = nano
    return found


async def _refunds(session: AsyncSession, provider: str, period: str) -> list[tuple[str, int]]:
    """What the provider will not charge of the month's machines by its own terms, and no invoice has answered yet."""
    query = (
        select(col(Entry.rental), func.sum(col(Posting.nano)))
        .join(Posting, col(Posting.entry_id) == col(Entry.id))
        .where(
            col(Entry.period) == period,
            col(Entry.rental).is_not(None),
            col(Entry.key).startswith(KEYS),
            col(Posting.account) == accounts.of_market("Assets:Receivable", provider),
            col(Posting.unit) == "USD",
        )
        .group_by(col(Entry.rental))
    )
    return [(str(rental), int(nano)) for rental, nano in (await session.execute(query)).all() if int(nano)]


async def _tiers(session: AsyncSession, provider: str) -> dict[tuple[str, ...], dict[str, int]]:
    """The prices of each machine by pricing, out of the newest offers: the key without its last part names the machine."""
    query = select(col(OfferRow.key), col(OfferRow.price_nano_hour)).where(col(OfferRow.market) == provider)
    found: dict[tuple[str, ...], dict[str, int]] = defaultdict(dict)
    for key, price in (await session.execute(query)).all():
        *machine, pricing = key.split("/")
        if price is not None:
            found[tuple(machine)][pricing] = int(price)
    return found


def _machine(
    rental: str, of: _Sum, row: RentalRow | None, tiers: Mapping[tuple[str, ...], Mapping[str, int]]
) -> Accrued:
    if row is None:  # a rental that only the books know
        price = (of.nano + of.refund_nano) * 3600 // of.seconds if of.seconds > 0 else 0
        return Accrued(rental, of.project, of.nano, of.seconds, price, refund_nano=of.refund_nano)
    *machine, pricing = row.offer_key.split("/")
    others = {name: price for name, price in tiers.get(tuple(machine), {}).items() if name != pricing}
    return Accrued(
        rental,
        of.project,
        of.nano,
        of.seconds,
        row.price_nano_hour,
        row.granularity_s,
        row.minimum_s,
        row.ended_us,
        others,
        refund_nano=of.refund_nano,
    )


async def _models(
    session: AsyncSession, provider: str, sums: Mapping[str, _Sum], rows: Mapping[str, RentalRow]
) -> dict[str, Accrued]:
    """One for each of the endpoint's models: all that was bought of it in the month, by whichever executor."""
    by_model: dict[str, list[str]] = defaultdict(list)
    for rental, row in rows.items():
        by_model[_endpoint(row).model].append(rental)
    used = await tokens_of(session, rows)
    cards = await _cards(session, provider) if rows else {}
    found = {}
    for model, members in by_model.items():
        tokens = sum([await _tokens(session, each, sums[each].keys) for each in members])
        nano = sum(sums[each].nano for each in members)
        projects = {sums[each].project for each in members}
        made = Accrued(
            model, projects.pop() if len(projects) == 1 else None, nano, tokens,
            nano * _MILLION // tokens if tokens else 0, unit="tokens", rentals=tuple(sorted(members)),
        )  # fmt: skip
        bought = [(rate_of_rental(rows[each]), used[each]) for each in members if each in used]
        found[model] = replace(made, tiers=_other_terms(made, bought, cards, rows[members[0]].offer_key, model))
    return found


async def _tokens(session: AsyncSession, rental: str, keys: Sequence[str]) -> int:
    """What the meter went up by in the month: its keys say how much it was in all, the first entry what it added to that."""
    totals = {key: tokens_in(key, rental) or 0 for key in keys}
    if not totals:
        return 0
    first = min(totals, key=lambda key: totals[key])
    entry = await session.scalar(select(Entry).where(col(Entry.key) == first))
    assert entry is not None
    facts = recorded(entry).event.facts
    added = (facts.quantity_nano or 0) if facts else 0
    return max(totals.values()) - totals[first] + added // NANO_PER_TOKEN


def _other_terms(
    ours: Accrued, bought: Sequence[tuple[TokenRate, Used]], cards: Mapping[str, TokenRate], key: str, model: str
) -> dict[str, int]:
    """What a million of the same tokens would have cost otherwise. Pure."""
    own = sum(cost_of_tokens(rate, used) for rate, used in bought)
    if not own:
        return {}
    uncached = [(replace(rate, cached_nano=rate.input_nano), used) for rate, used in bought]
    found = {"what comes from a cache at the price of fresh input": _whole(uncached)}
    if (now := cards.get(key)) is not None:
        found[CARD_NOW] = _whole((now, used) for _, used in bought)
    batch = next((rate for each, rate in cards.items() if each == key.replace("/tokens/", ":batch/tokens/")), None)
    if batch is not None:
        found["batch"] = _whole((batch, used) for _, used in bought)
    return {name: ours.price_nano * nano // own for name, nano in found.items() if nano != own}


def _whole(bought: Iterable[tuple[TokenRate, Used]]) -> int:
    return sum(cost_of_tokens(rate, used) for rate, used in bought)


async def _cards(session: AsyncSession, provider: str) -> dict[str, TokenRate]:
    """What the endpoint asks for each offer by its newest card, where it is in USD."""
    query = select(OfferRow).where(col(OfferRow.market) == provider, col(OfferRow.pricing) == "token")
    offers = {row.key: offer_from_record(row.record) for row in await session.scalars(query)}
    return {
        key: rate_of(offer.per_million)
        for key, offer in offers.items()
        if offer.per_million is not None and offer.currency == "USD"
    }


def _endpoint(row: RentalRow) -> TokenEndpoint:
    found = offer_from_record(row.facts).endpoint
    if found is None:
        raise ValueError(f"rental {row.id} at {row.offer_key} buys tokens and has no endpoint")
    return found


def _names(row: RentalRow, endpoint: TokenEndpoint) -> Iterable[str]:
    """What a bill may call the model: the endpoint's name of it, ours, the offer's key, our rental."""
    return {each.lower() for each in (endpoint.model, endpoint.serves, row.model or "", row.offer_key, row.id) if each}
