"""What AWS said about a region, as our offers. Pure: the one place that knows how AWS's prices become ours.

On-demand has one price a region, so its offers have no zone: whichever zone has room serves. Spot has one a zone. Zones
are named by their ids (`use1-az6`): the names (`us-east-1a`) mean another place in each account.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal, InvalidOperation
from typing import Any

from markets.aws.machine_types import MachineType, quota_code
from markets.aws.price_list import HOLDS
from markets.aws.regions import OPERATOR, PLACES, SOURCE
from markets.offer import Evidence, Offer, OfferKey, Pricing, QuotaShare, price_problem, quarantine, raw_digest

MARKET = "aws"
MINIMUM_S = 60
SPOT_NOTICE_S = 120
EGRESS_PER_GB = Decimal("0.09")
EVIDENCE_TTL = timedelta(days=30)
# "Linux/UNIX (Amazon VPC)" is the same product in the wording of accounts older than VPC
LINUX = ("Linux/UNIX", "Linux/UNIX (Amazon VPC)")


@dataclass(frozen=True, slots=True)
class SpotPrice:
    """What spot costs in one zone; `at` is when that price began."""

    zone: str
    price: Decimal
    at: datetime


@dataclass(frozen=True, slots=True)
class RegionFacts:
    """All that is known of a region at `seen_at`. `zones`: zone name → zone id, availability zones only.

    `on_demand` None means that the price list is not to be had; AWS said at `on_demand_at` that it is the current one.
    `quotas`: quota code → vCPUs that are left. `hazards`: instance type → interruptions of spot an hour.
    """

    region: str
    seen_at: datetime
    types: Mapping[str, MachineType]
    zones: Mapping[str, str]
    spot: Mapping[str, Sequence[SpotPrice]]
    on_demand: Mapping[str, Decimal] | None
    on_demand_at: datetime | None
    quotas: Mapping[str, int] = field(default_factory=dict)
    boot_s: int | None = None
    hazards: Mapping[str, Decimal] = field(default_factory=dict)


def region_offers(facts: RegionFacts, pricings: Sequence[Pricing]) -> list[Offer]:
    """The offers of a region, cheapest types first by name; unlocated and unpriced ones are listed with the reason."""
    found: list[Offer] = []
    for name, kind in sorted(facts.types.items()):
        if "on_demand" in pricings and facts.on_demand is not None:
            price = facts.on_demand.get(name)
            if price is not None:  # a type that is not in the list is not sold there
                found.append(_offer(facts, kind, "on_demand", None, price, on_demand_at(facts)))
        if "spot" in pricings:
            found += [
                _offer(facts, kind, "spot", facts.zones[each.zone], each.price, facts.seen_at)
                for each in facts.spot.get(name, ())
            ]
    return found


def on_demand_at(facts: RegionFacts) -> datetime:
    """When the on-demand prices were observed: with the region, while the list, which is looked at once a day, holds.

    By the time of the list itself they were stale after three polls, and spot had no fallback until the next day.
    """
    checked_at = facts.on_demand_at
    return facts.seen_at if checked_at is None or facts.seen_at - checked_at <= HOLDS else checked_at


def spot_prices(history: Iterable[Mapping[str, Any]], zones: Mapping[str, str]) -> dict[str, list[SpotPrice]]:
    """Instance type → its newest price in each zone. `DescribeSpotPriceHistory` from now on has one row for each.

    Rows of other systems and of Local Zones do not count; nor does a price that is not a positive number.
    """
    newest: dict[tuple[str, str], SpotPrice] = {}
    for row in history:
        zone = row["AvailabilityZone"]
        if row["ProductDescription"] not in LINUX or zone not in zones:
            continue
        try:
            price = Decimal(row["SpotPrice"])
        except InvalidOperation:
            continue
        place = (row["InstanceType"], zone)
        if price > 0 and (place not in newest or newest[place].at < row["Timestamp"]):
            newest[place] = SpotPrice(zone, price, row["Timestamp"])
    found: dict[str, list[SpotPrice]] = {}
    for (name, _), spot in sorted(newest.items(), key=lambda item: item[0]):
        found.setdefault(name, []).append(spot)
    return found


def availability_zones(answer: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Zone name → zone id. Local and Wavelength Zones are elsewhere, sometimes in another country: left out."""
    return {each["ZoneName"]: each["ZoneId"] for each in answer if each.get("ZoneType") == "availability-zone"}


def _offer(
    facts: RegionFacts, kind: MachineType, pricing: Pricing, zone: str | None, price: Decimal, observed_at: datetime
) -> Offer:
    place = PLACES.get(facts.region)
    chip = kind.accelerator
    is_spot = pricing == "spot"
    source = "ec2 DescribeSpotPriceHistory" if is_spot else "AWS bulk price list"
    raw = {"region": facts.region, "zone": zone, "type": kind.name, "pricing": pricing, "usd_per_hour": str(price)}
    offer = Offer(
        key=OfferKey(MARKET, facts.region, zone, kind.name, chip.name, chip.count, pricing),
        launch="vm",
        accelerator=chip,
        currency="USD",
        price=price,
        observed_at=observed_at,
        source=source,
        raw_sha256=raw_digest(raw),
        quota=_quota(facts, kind, is_spot),
        granularity_s=1,
        minimum_s=MINIMUM_S,
        egress_per_gb=EGRESS_PER_GB,
        interruption_per_hour=facts.hazards.get(kind.name) if is_spot else Decimal(0),
        notice_s=SPOT_NOTICE_S if is_spot else 0,
        boot_s=facts.boot_s,
        country=place.country if place else None,
        subdivision=place.subdivision if place else None,
        evidence=(Evidence("region_table", SOURCE, facts.seen_at, EVIDENCE_TTL),) if place else (),
        location_tier="hyperscaler_region" if place else "anonymous",
        operator=OPERATOR,
        jurisdictions=place.jurisdictions if place else None,
    )
    if place is None:
        reason = (
            f"offer {offer.key}: no country is known for region {facts.region!r}; it is not in markets/aws/regions.py"
        )
        return quarantine(offer, reason)
    if kind.problem:
        return quarantine(offer, f"offer {offer.key}: {kind.problem} (source: ec2 DescribeInstanceTypes)")
    problem = price_problem(offer)
    return quarantine(offer, problem) if problem else offer


def _quota(facts: RegionFacts, kind: MachineType, is_spot: bool) -> QuotaShare | None:
    """The account's quota that this type counts against, in vCPUs: one for whole families, shared by all zones of the region.

    What EC2 itself has of a type it never says: the offer's capacity is unknown. One capacity for each type and zone, all out of
    the same quota, was once planned with: 8 zones of a quota for one machine made 8 machines.
    """
    code = quota_code(kind.name, is_spot=is_spot)
    left = facts.quotas.get(code) if code else None
    return None if left is None else QuotaShare(f"{MARKET}/{facts.region}/{code}", kind.vcpus, left, "vCPU")
