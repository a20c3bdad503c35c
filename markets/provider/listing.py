"""From what a provider said of one thing to our offer: the tables are asked here, and nothing is guessed.

An adapter fills in `Said`; what an unknown accelerator, an unknown place or an unknown price means is decided once, here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

import pycountry
import structlog

from markets.offer import (
    Accelerator,
    AcceleratorKind,
    Confidentiality,
    Evidence,
    Launch,
    LocationTier,
    Offer,
    OfferKey,
    Pricing,
    price_problem,
    quarantine,
    raw_digest,
)

MIB_PER_GIB = 1024
_log = structlog.get_logger("markets.provider")
# "Atlanta, Georgia" is not in the Caucasus. Whoever means the country must say so in another way.
_ALSO_STATES = frozenset({"georgia", "ge"})


@dataclass(frozen=True, slots=True)
class Place:
    """Where a machine is, and why we believe it. Without `kind` nobody vouches for it, and there is no evidence."""

    country: str
    tier: LocationTier
    kind: str | None
    source: str
    subdivision: str | None = None
    ttl: timedelta = timedelta(days=30)


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """What the provider said of one offer. `device` is its word for the accelerator (None: there is none); `memory_mib` of one.

    `price` is of a whole hour of all of it, in `currency`. `operator` is whoever runs the machine, `home` where that
    operator or its parent can be compelled; both None for hosts that we know nothing of.
    """

    market: str
    sku: str
    pricing: Pricing
    launch: Launch
    price: Decimal | None
    source: str
    raw: Mapping[str, Any]
    device: str | None = None
    count: int = 0
    memory_mib: int = 0
    kind: AcceleratorKind = "nvidia"
    form: str | None = None
    fraction: Decimal = Decimal(1)
    currency: str = "USD"
    region: str | None = None
    zone: str | None = None
    place: Place | None = None
    operator: str | None = None
    home: str | None = None
    components: Mapping[str, Decimal] = field(default_factory=dict)
    capacity: int | None = None
    granularity_s: int = 1
    minimum_s: int = 0
    egress_per_gb: Decimal = Decimal(0)
    ingress_per_gb: Decimal = Decimal(0)
    interruption_per_hour: Decimal | None = None
    notice_s: int = 0
    confidentiality: Confidentiality = "none"
    not_for_sale: str | None = None


def offer(said: Said, at: datetime) -> Offer:
    """The offer as of `at`. What cannot be trusted is listed all the same, quarantined with the reason a person reads."""
    chip = accelerator(said)
    place = said.place
    made = Offer(
        key=OfferKey(said.market, said.region, said.zone, said.sku, chip.name, chip.count, said.pricing),
        launch=said.launch,
        accelerator=chip,
        currency=said.currency,
        price=said.price,
        observed_at=at,
        source=said.source,
        raw_sha256=raw_digest(said.raw),
        components=said.components,
        capacity=said.capacity,
        granularity_s=said.granularity_s,
        minimum_s=said.minimum_s,
        egress_per_gb=said.egress_per_gb,
        ingress_per_gb=said.ingress_per_gb,
        interruption_per_hour=said.interruption_per_hour,
        notice_s=said.notice_s,
        country=place.country if place else None,
        subdivision=place.subdivision if place else None,
        evidence=(Evidence(place.kind, place.source, at, place.ttl),) if place and place.kind else (),
        location_tier=place.tier if place else "anonymous",
        confidentiality=said.confidentiality,
        operator=said.operator,
        jurisdictions=tuple(sorted({said.home, place.country})) if place and said.home else None,
    )
    for reason in (price_problem(made), said.not_for_sale and f"offer {made.key}: {said.not_for_sale}"):
        if reason:
            made = quarantine(made, reason)
    return made


def accelerator(said: Said) -> Accelerator:
    """The device under its provider's name, in our spelling."""
    if said.device is None or said.count == 0:
        return Accelerator()
    return Accelerator(said.kind, slug(said.device), said.form, said.memory_mib, said.count, said.fraction)


def declared(country: str | None, source: str, tier: LocationTier = "named_datacenter") -> Place | None:
    """The place as the provider's own API declares it; None when it names no country."""
    return Place(country, tier, "provider_api", source) if country else None


def slug(name: str) -> str:
    """A name as we write it in keys.

    >>> slug("NVIDIA H100 80GB HBM3")
    'nvidia-h100-80gb-hbm3'
    """
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def country_of(words: str) -> str | None:
    """The country that ends a place's description, or None: two letters may be a state of the US, and are not read here.

    >>> country_of("California, USA"), country_of("Stockholm, Sweden")
    ('US', 'SE')
    >>> country_of("Atlanta, Georgia"), country_of("Los Angeles, CA"), country_of("Austin, Texas")
    (None, None, None)
    """
    last = words.rpartition(",")[2].strip()
    if len(last) < 3 or last.lower() in _ALSO_STATES:
        return None
    try:
        return str(pycountry.countries.lookup(last).alpha_2)
    except LookupError:
        return None


def distinct(offers: Iterable[Offer]) -> list[Offer]:
    """Each key once. Pages shift while prices change, and a row then comes twice: the later one is the newer."""
    found: dict[str, Offer] = {}
    twice = 0
    for each in offers:
        twice += str(each.key) in found
        found[str(each.key)] = each
    if twice:
        _log.info("provider.rows_twice", market=next(iter(found.values())).market, rows=twice)
    return list(found.values())
