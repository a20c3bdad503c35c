"""The price list as people see it: the book, and the dated snapshot for markets that nobody has asked yet."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal

from sqlalchemy.ext.asyncio import AsyncSession

from broker.control.convert import is_known_on
from broker.control.snapshot import listed_offers
from broker.price_ages import default_max_age_s, max_ages_s
from broker.services import Services
from broker.speeds import expected_speeds
from markets import price_book
from markets.cards import snapshot
from markets.instants import micros
from markets.offer import Accelerator, Launch, Offer
from markets.own_account import holder_of
from markets.price_book import Listed, unlocated
from markets.price_search import Wanted
from workers.fit import misfit
from workers.profile import ModelProfile

MILLION_PER_HOUR = Decimal(3600) / 1_000_000


async def price_list(
    session: AsyncSession,
    services: Services,
    *,
    now_us: int,
    wanted: Wanted = price_book.ALL,
    project: str | None = None,
) -> list[Listed]:
    """Every wanted offer that is known of, also those that cannot be chosen, with the reason; of own accounts, `project`'s.

    Of the snapshot, which is small, all that its markets have: whoever asks looks at each again.
    """
    book = await listed_offers(session, services, now_us=now_us, wanted=wanted, project=project)
    unasked = await _unasked(session, services)
    shown = [
        _of_snapshot(offer, now_us)
        for name, offers in unasked.items()
        if wanted.market in (None, name)
        for offer in offers
    ]
    return [*book, *shown]


async def offer_counts(session: AsyncSession, services: Services, *, project: str | None) -> dict[str, int]:
    """How many offers `price_list` would have of each market."""
    counts = await price_book.count_by_market(session)
    book = {name: count for name, count in counts.items() if holder_of(name) in (None, project)}
    return book | {name: len(offers) for name, offers in (await _unasked(session, services)).items()}


async def choosable(
    session: AsyncSession, services: Services, wanted: Wanted, *, now_us: int, project: str | None, limit: int
) -> list[Listed]:
    """Of what `price_list` would say the cheapest that may be chosen now, without reading it all. Of the snapshot nothing may."""
    return await price_book.cheapest(
        session,
        wanted,
        now_us=now_us,
        max_age_s=max_ages_s(services),
        default_max_age_s=default_max_age_s(services),
        holder=project,
        limit=limit,
    )


async def _unasked(session: AsyncSession, services: Services) -> dict[str, Sequence[Offer]]:
    """The snapshot's offers of markets that the book knows nothing of."""
    if not services.settings.prices.snapshot:
        return {}
    asked = await price_book.count_by_market(session)
    return {name: offers for name, offers in snapshot.by_market().items() if name not in asked}


async def one_listed(
    session: AsyncSession, services: Services, key: str, *, now_us: int, project: str | None = None
) -> Listed | None:
    """The offer with this key, of the book or of the snapshot; None: nobody knows it."""
    book = await listed_offers(session, services, now_us=now_us, key=key, project=project)
    if book or not services.settings.prices.snapshot:
        return book[0] if book else None
    old = snapshot.by_market().get(key.partition("/")[0], ())
    return next((_of_snapshot(offer, now_us) for offer in old if str(offer.key) == key), None)


def _of_snapshot(offer: Offer, now_us: int) -> Listed:
    why = offer.quarantined or snapshot.why_not(offer)
    return Listed(offer, offer.observed_at, why, unlocated(offer, now_us=now_us))


def is_snapshot(listed: Listed) -> bool:
    return listed.offer.source.startswith("snapshot")


def usd_price(offer: Offer) -> Decimal | None:
    """USD per instance-hour that can be believed; None: unknown. Capacity that is paid for anyway costs 0 more."""
    price = offer.price if offer.currency == "USD" else None
    if price is None or not price.is_finite():
        return None
    return price if price > 0 or (offer.pricing == "reserved" and offer.sunk_per_hour) else None


def serves(profile: ModelProfile, offer: Offer) -> bool:
    """Whether the model can be launched and served on this offer, and a speed is known for its accelerator."""
    return is_known_on(profile, offer) and misfit(profile, offer.accelerator) is None


class Outputs:
    """Output tokens a second of a model by offer: of the profiles that can be served there the fastest, as given or estimated."""

    def __init__(self, profiles: Sequence[ModelProfile], accelerators: Collection[Accelerator]) -> None:
        self._speeds = [(profile, expected_speeds(profile, accelerators)) for profile in profiles]
        # a list of 10,000 offers has some hundred of these
        self._known: dict[tuple[Launch, Accelerator], Decimal | None] = {}

    def on(self, offer: Offer) -> Decimal | None:
        """None: no profile can be served there, or no speed is known."""
        kind = (offer.launch, offer.accelerator)
        if kind not in self._known:
            name = offer.accelerator.name
            fitting = (by_name[name] for profile, by_name in self._speeds if name in by_name and serves(profile, offer))
            self._known[kind] = max((Decimal(str(output_per_s)) for _, output_per_s in fitting), default=None)
        return self._known[kind]


def usd_per_million(offer: Offer, outputs: Outputs) -> Decimal | None:
    """The least USD per million output tokens of a model on this offer; for token offers, their price.

    None: no speed is known for it. A rental runs one engine: a machine with more devices than it uses costs all.
    """
    if offer.per_million is not None:
        return offer.per_million.output if offer.currency == "USD" else None
    price, best = usd_price(offer), outputs.on(offer)
    return None if price is None or best is None or best <= 0 else round(price / (best * MILLION_PER_HOUR), 9)


def order(listed: Sequence[Listed], per_million: Mapping[str, Decimal] | None = None) -> list[Listed]:
    """Those that may be chosen first, then by price; an unknown price is not a low one."""

    def rank(each: Listed) -> tuple[bool, bool, Decimal, str]:
        key = str(each.offer.key)
        price = usd_price(each.offer) if per_million is None else per_million.get(key)
        return (each.excluded is not None, price is None, Decimal(0) if price is None else price, key)

    return sorted(listed, key=rank)


def age_s(listed: Listed, now_us: int) -> int:
    return (now_us - micros(listed.offer.observed_at)) // 1_000_000


@dataclass(frozen=True, slots=True)
class Compared:
    """What a work would cost at an offer that cannot be chosen: USD for all of it, and for a million output tokens."""

    offer: Offer
    usd: Decimal
    usd_per_million: Decimal


def compared(
    listed: Sequence[Listed], profiles: Sequence[ModelProfile], *, input_tokens: int, output_tokens: int, most: int = 3
) -> list[Compared]:
    """The cheapest offers that are not placed on and for which a speed is known, one of each market and accelerator. Pure.

    A comparison for people: one machine at the profile's speed, given or estimated, without starting up.
    """
    found: dict[tuple[str, str], Compared] = {}
    shown = [each for each in listed if each.excluded is not None and not each.offer.quarantined]
    chips = [each.offer.accelerator for each in shown]
    speeds = [(profile.options.accelerators, expected_speeds(profile, chips)) for profile in profiles]
    for each in shown:
        price, name = usd_price(each.offer), each.offer.accelerator.name
        if price is None:
            continue
        for needed, by_name in speeds:
            if name not in by_name or needed > max(1, each.offer.accelerator.count):
                continue
            input_per_s, output_per_s = (Decimal(str(speed)) for speed in by_name[name])
            hours = (input_tokens / input_per_s + output_tokens / output_per_s) / 3600
            one = Compared(each.offer, round(price * hours, 9), round(price / (output_per_s * MILLION_PER_HOUR), 9))
            pool = (each.offer.market, name)
            if pool not in found or one.usd < found[pool].usd:
                found[pool] = one
    return sorted(found.values(), key=lambda one: (one.usd, str(one.offer.key)))[:most]
