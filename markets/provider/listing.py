"""From what a provider said of one thing to our offer: the tables are asked here, and nothing is guessed.

An adapter fills in `Said`; what an unknown accelerator, an unknown place or an unknown price means is decided once, here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

import pycountry
import structlog

from markets.facts.accelerators import Identified, identify
from markets.facts.regions import Located, located
from markets.facts.regions import declared as declared_in
from markets.hourly import FxRate, Part, hourly
from markets.offer import (
    Accelerator,
    AcceleratorKind,
    Confidentiality,
    Launch,
    LocationTier,
    Offer,
    OfferKey,
    Pricing,
    QuotaShare,
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
    """What the provider said of one offer. `device` is its word for the accelerator (None: there is none); `memory_mib` of one,
    0 where it does not say; `kind` and `form` where it does.

    `price` is of a whole hour of all of it, in `currency`; `components`, where there are any, are its parts and count instead:
    one of 0 is free, one of None unknown, and then the whole is.
    `fx` are the rates of the day. `operator` is whoever runs the machine and `home` where that operator or its parent can be
    compelled, where they are not the market's own; `by_hosts`: machines of hosts that nobody names.
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
    kind: AcceleratorKind | None = None
    form: str | None = None
    fraction: Decimal = Decimal(1)
    currency: str = "USD"
    fx: Mapping[str, FxRate] = field(default_factory=dict)
    region: str | None = None
    zone: str | None = None
    place: Place | None = None
    operator: str | None = None
    home: str | None = None
    by_hosts: bool = False
    components: Mapping[str, Decimal | None] = field(default_factory=dict)
    capacity: int | None = None
    granularity_s: int = 1
    minimum_s: int = 0
    deposit: Decimal = Decimal(0)
    refundable_fraction: Decimal = Decimal(0)
    egress_per_gb: Decimal = Decimal(0)
    ingress_per_gb: Decimal = Decimal(0)
    interruption_per_hour: Decimal | None = None
    notice_s: int = 0
    boot_s: int | None = None
    confidentiality: Confidentiality = "none"
    not_for_sale: str | None = None
    quota: QuotaShare | None = None


def offer(said: Said, at: datetime) -> Offer:
    """The offer as of `at`. What cannot be trusted is listed all the same, quarantined with the reason a person reads."""
    found = accelerator(said)
    chip = found.accelerator
    amounts: Mapping[str, Decimal | None] = said.components or {"instance": said.price}
    money = hourly(
        [Part(name, amount, optional=len(amounts) > 1 and amount is not None) for name, amount in amounts.items()],
        currency=said.currency,
        gpus=chip.count,
        fx=said.fx,
    )
    where, contradiction = _where(said, at)
    made = Offer(
        key=OfferKey(said.market, said.region, said.zone, said.sku, chip.name, chip.count, said.pricing),
        launch=said.launch,
        accelerator=chip,
        currency=money.currency,
        price=money.price,
        observed_at=at,
        source=said.source,
        raw_sha256=raw_digest(said.raw),
        raw={**money.raw, **({"device": said.device} if said.device else {})},
        components=money.components if said.components else {},
        capacity=said.capacity,
        quota=said.quota,
        granularity_s=said.granularity_s,
        minimum_s=said.minimum_s,
        deposit=said.deposit,
        refundable_fraction=said.refundable_fraction,
        egress_per_gb=said.egress_per_gb,
        ingress_per_gb=said.ingress_per_gb,
        interruption_per_hour=said.interruption_per_hour,
        notice_s=said.notice_s,
        boot_s=said.boot_s,
        confidentiality=said.confidentiality,
        **where.fields(),
    )
    sliced = f"a slice ({chip.fraction}) of an accelerator, whose speed is not known" if chip.fraction < 1 else None
    for reason in (money.problem, found.problem, contradiction, sliced, said.not_for_sale):
        if reason:
            made = quarantine(made, f"offer {made.key}: {reason} (source: {said.source})")
    return made


def accelerator(said: Said) -> Identified:
    """The device that the provider's word means by the table; without a device a machine of processors alone."""
    if said.device is None or said.count == 0:
        return Identified(Accelerator())
    found = identify(
        said.device, count=said.count, memory_mib=said.memory_mib or None, form=said.form, fraction=said.fraction
    )
    if said.kind and not found.problem and found.accelerator.kind != said.kind:
        return replace(found, problem=f"{said.device!r} is {found.accelerator.kind}, and its provider says {said.kind}")
    return found


def _where(said: Said, at: datetime) -> tuple[Located, str | None]:
    """What the provider declares, or else what the table knows of its region; where the two differ, neither counts."""
    table = located(said.market, said.region, observed_at=at)
    where, contradiction, place = table, None, said.place
    if place is not None:
        where = declared_in(
            said.market,
            place.country,
            source=place.source,
            observed_at=at,
            subdivision=place.subdivision,
            kind=place.kind or "host_claim",
            tier=place.tier,
        )
        if table.country and where.country != table.country:
            contradiction = (
                f"region {said.region!r} is in {where.country} by its provider and in {table.country} by our table"
            )
            where = located(said.market, None, observed_at=at)
    if said.by_hosts or said.operator is not None:
        reach = tuple(sorted({said.home, where.country})) if said.home and where.country else None
        where = replace(where, operator=said.operator, jurisdictions=reach)
    return where, contradiction


def declared(country: str | None, source: str, tier: LocationTier = "named_datacenter") -> Place | None:
    """The place as the provider's own API declares it; None when it names no country."""
    return Place(country, tier, "provider_api", source) if country else None


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
