"""The price book as people see it: every offer, also those that must not be chosen, with the reason."""

from __future__ import annotations

from decimal import Decimal

from pydantic import ConfigDict, Field

from broker.api import shapes
from broker.api.problems import not_found
from broker.api.registry import EVERYONE, Call, Route, route
from broker.control.convert import is_known_on
from broker.control.snapshot import listed_offers
from broker.variants import serving
from jobs.clock import MICROSECONDS, db_now
from markets.instants import micros
from markets.offer import Offer
from markets.price_book import Listed
from workers.fit import misfit
from workers.profile import ModelProfile


class OfferQuery(shapes.Own):
    """Filters; all given ones must hold."""

    model_config = ConfigDict(extra="forbid")

    market: str | None = Field(default=None, max_length=64)
    country: str | None = Field(default=None, pattern=r"^[A-Za-z]{2}$")
    model: str | None = Field(default=None, max_length=200, description="only offers on which this model could run")


async def list_offers(call: Call, query: OfferQuery) -> shapes.OfferList:
    """List offers, cheapest first; sold out, stale and quarantined ones too, each with the reason."""
    services = call.services
    profiles = serving(services.models, query.model or "")
    if query.model is not None and not profiles:
        raise not_found("model_not_found", f"The model {query.model!r} is not served here.")
    async with services.database.transaction() as session:
        listed = await listed_offers(session, services, now_us=await db_now(session), market=query.market)
    wanted = [
        each
        for each in listed
        if (query.country is None or each.offer.country == query.country.upper())
        and (not profiles or any(serves(profile, each.offer) for profile in profiles))
    ]
    return shapes.OfferList(data=[offer_shape(each) for each in sorted(wanted, key=_by_price)])


def serves(profile: ModelProfile, offer: Offer) -> bool:
    """Whether the model can be launched and served on this offer, and a speed is known for its accelerator."""
    return is_known_on(profile, offer) and misfit(profile, offer.accelerator) is None


def _by_price(listed: Listed) -> tuple[bool, Decimal, str]:
    price = listed.offer.price
    known = price is not None and price.is_finite() and price > 0
    return (not known, price if known and price is not None else Decimal(0), str(listed.offer.key))


def offer_shape(listed: Listed) -> shapes.Offer:
    """A row of the price book; only a believable price in USD is shown as one."""
    offer, chip = listed.offer, listed.offer.accelerator
    price = offer.price if offer.currency == "USD" and not _by_price(listed)[0] else None
    return shapes.Offer(
        key=str(offer.key),
        market=offer.market,
        region=offer.key.region,
        zone=offer.key.zone,
        country=offer.country,
        subdivision=offer.subdivision,
        location_evidence=[f"{each.kind}: {each.source}" for each in offer.evidence],
        location_tier=offer.location_tier,
        confidentiality=offer.confidentiality,
        operator=offer.operator,
        operator_jurisdictions=None if offer.jurisdictions is None else list(offer.jurisdictions),
        gpu=chip.name,
        gpu_memory_gib=_plain(Decimal(chip.memory_mib) / 1024),
        gpu_count=chip.count,
        pricing=offer.pricing,
        usd_per_hour=None if price is None else _plain(price),
        usd_per_gpu_hour=None if price is None or chip.count == 0 else _plain(round(price / chip.count, 9)),
        observed_at=micros(offer.observed_at) // MICROSECONDS,
        source=offer.source,
        capacity=offer.capacity,
        interruption_per_hour=None if offer.interruption_per_hour is None else _plain(offer.interruption_per_hour),
        notice_s=offer.notice_s,
        granularity_s=offer.granularity_s,
        minimum_s=offer.minimum_s,
        egress_usd_per_gb=_plain(offer.egress_per_gb),
        launch=offer.launch,
        quarantined=offer.quarantined is not None,
        reason=listed.excluded or listed.unlocated,
    )


def _plain(number: Decimal) -> str:
    """Exact, without an exponent or trailing zeros."""
    text = format(number, "f")
    return text.rstrip("0").rstrip(".") if "." in text else text


ROUTES: tuple[Route, ...] = (
    route("GET", "/v1/market/offers", list_offers, tag="market", roles=EVERYONE),
)  # fmt: skip
