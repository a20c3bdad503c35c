"""The price book as people see it: every offer, also those that must not be chosen, with the reason."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from typing import Annotated, Literal

from pydantic import AfterValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

from broker.api import shapes
from broker.api.problems import not_found
from broker.api.registry import EVERYONE, Call, Route, route
from broker.price_list import Outputs, choosable, order, price_list, serves, usd_per_million, usd_price
from broker.variants import serving
from jobs.clock import MICROSECONDS, db_now
from markets.facts.regions import country_code
from markets.instants import micros
from markets.offer import LocationTier, Offer, Pricing
from markets.price_book import Listed
from markets.price_search import Wanted
from workers.profile import ModelProfile


def _as_country(given: str) -> str:
    """The ISO 3166 code in capitals. An unknown one would find nothing, and look as if there were no offers."""
    code = country_code(given)
    if code is not None and code == given.upper():
        return code
    mend = "such as DE" if code is None else f"write {code}"
    raise PydanticCustomError(
        "country", "Input should be the ISO 3166 code of a country, two letters: {mend}", {"mend": mend}
    )


Country = Annotated[
    str,
    AfterValidator(_as_country),
    Field(max_length=100, description="ISO 3166 alpha-2, such as DE", json_schema_extra={"pattern": "^[A-Za-z]{2}$"}),
]


class OfferQuery(shapes.Own):
    """Filters; all given ones must hold."""

    model_config = ConfigDict(extra="forbid")

    market: str | None = Field(default=None, max_length=64)
    country: Country | None = None
    region: str | None = Field(default=None, max_length=100)
    model: str | None = Field(default=None, max_length=200, description="only offers on which this model could run")
    gpu: str | None = Field(
        default=None, max_length=64, description="an accelerator, or the beginning of its name: `h100`"
    )
    pricing: Pricing | None = None
    location_tier: LocationTier | None = None
    min_gpus: int | None = Field(default=None, ge=0)
    max_usd: Decimal | None = Field(
        default=None, ge=0, description="at most so many USD an hour, for the whole machine"
    )
    usable: Literal["true", "false"] = Field(
        default="false", description="only prices that are believed, fresh and not sold out"
    )
    limit: int | None = Field(default=None, ge=1, description="the first so many")


async def list_offers(call: Call, query: OfferQuery) -> shapes.OfferList:
    """List offers, cheapest first; sold out, stale and quarantined ones too, each with the reason.

    For a model they are ordered by the price of a million output tokens instead, and `usd_per_million` has it by key; so are
    offers that are all of tokens. What nobody has asked yet is shown by the dated snapshot that comes with the broker, and
    says so.
    """
    found, per_million = await found_offers(call, query)
    told = None if per_million is None else {key: shapes.plain(price) for key, price in per_million.items()}
    return shapes.OfferList(data=[offer_shape(each) for each in found], usd_per_million=told)


async def found_offers(call: Call, query: OfferQuery) -> tuple[list[Listed], dict[str, Decimal] | None]:
    """The offers in their order; for a model, and where all of them are of tokens, the price of a million written by key."""
    services = call.services
    profiles = serving(services.models, query.model or "")
    if query.model is not None and not profiles:
        raise not_found("model_not_found", f"The model {query.model!r} is not served here.")
    wanted = await _wanted(call, query, profiles)
    per_million = None
    if profiles or (wanted and all(each.offer.pricing == "token" for each in wanted)):
        outputs = Outputs(profiles, [each.offer.accelerator for each in wanted])
        prices = ((str(each.offer.key), usd_per_million(each.offer, outputs)) for each in wanted)
        per_million = {key: price for key, price in prices if price is not None}
    return order(wanted, per_million)[: query.limit], per_million


async def _wanted(call: Call, query: OfferQuery, profiles: Sequence[ModelProfile]) -> list[Listed]:
    """What the database leaves in of the book, looked at once more. The first so many that may be chosen are found by their
    price; where there are fewer, those without a price of an hour count, too, and all are looked at."""
    narrowed = Wanted(
        market=query.market,
        gpu=query.gpu and query.gpu.lower(),
        pricing=query.pricing,
        country=query.country,
        least_count=query.min_gpus,
    )
    by_price = query.usable == "true" and not profiles and not (query.region or query.location_tier)
    async with call.services.database.transaction() as session:
        now_us = await db_now(session)
        if by_price and query.limit is not None:
            first = await choosable(
                session, call.services, narrowed, now_us=now_us, project=call.project, limit=query.limit
            )
            found = [each for each in first if _is_wanted(each, query)]
            if len(found) == query.limit:
                return found
        listed = await price_list(session, call.services, now_us=now_us, wanted=narrowed, project=call.project)
    return [each for each in listed if _is_wanted(each, query) and (not profiles or _runs(profiles, each.offer))]


def _is_wanted(listed: Listed, query: OfferQuery) -> bool:
    offer = listed.offer
    price = usd_price(offer)
    return (
        (query.country is None or offer.country == query.country)
        and (query.region is None or offer.key.region == query.region)
        and (query.gpu is None or offer.accelerator.name.startswith(query.gpu.lower()))
        and (query.pricing is None or offer.pricing == query.pricing)
        and (query.location_tier is None or offer.location_tier == query.location_tier)
        and (query.min_gpus is None or offer.accelerator.count >= query.min_gpus)
        and (query.max_usd is None or (price is not None and price <= query.max_usd))
        and (query.usable == "false" or (listed.excluded is None and offer.capacity != 0))
    )


def _runs(profiles: Sequence[ModelProfile], offer: Offer) -> bool:
    return any(serves(profile, offer) for profile in profiles)


def offer_shape(listed: Listed) -> shapes.Offer:
    """A row of the price book; only a believable price in USD is shown as one."""
    offer, chip = listed.offer, listed.offer.accelerator
    price = usd_price(offer)
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
        gpu_memory_gib=shapes.plain(Decimal(chip.memory_mib) / 1024),
        gpu_count=chip.count,
        pricing=offer.pricing,
        usd_per_hour=None if price is None else shapes.plain(price),
        usd_per_gpu_hour=None if price is None or chip.count == 0 else shapes.plain(round(price / chip.count, 9)),
        observed_at=micros(offer.observed_at) // MICROSECONDS,
        source=offer.source,
        capacity=offer.capacity,
        interruption_per_hour=None
        if offer.interruption_per_hour is None
        else shapes.plain(offer.interruption_per_hour),
        notice_s=offer.notice_s,
        granularity_s=offer.granularity_s,
        minimum_s=offer.minimum_s,
        egress_usd_per_gb=shapes.plain(offer.egress_per_gb),
        launch=offer.launch,
        quarantined=offer.quarantined is not None,
        reason=listed.excluded or listed.unlocated,
    )


ROUTES: tuple[Route, ...] = (
    route("GET", "/v1/market/offers", list_offers, tag="market", roles=EVERYONE),
)  # fmt: skip
