"""Conversions between the rooms' types (contract C1): markets' offers into solver's views and facts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from decimal import Decimal
from types import MappingProxyType
from typing import TypeVar

from broker.speeds import Speed, at_once, can_estimate
from ledger.money import to_nano
from markets.instants import micros
from markets.offer import Offer, price_problem
from markets.own_account import holder_of
from solver.residency import FactEvidence, Facts, PathFacts, digest
from solver.types import OfferView, Throughput, Timings
from workers.profile import ModelProfile

# What renting takes until the first process runs, where the market does not say. Seconds; docker images are pulled before.
DEFAULT_BOOT_S = {"process": 1, "container": 5, "vm": 120, "kubernetes": 60, "token_api": 0}


def facts_of(offer: Offer, paths: Sequence[PathFacts] = ()) -> Facts:
    """What the residency evaluator may know of the place that an offer describes; `paths` are the broker's other data paths.

    A marketplace's own name of a machine is its sku, an own host's its region or sku.
    """
    policy = offer.data_policy or {}
    return Facts(
        country=offer.country,
        subdivision=offer.subdivision,
        location_tier=offer.location_tier,
        confidentiality=offer.confidentiality,
        launch=offer.launch,
        market=offer.key.provider,
        operator=offer.operator,
        jurisdictions=offer.jurisdictions,
        evidence=tuple(
            FactEvidence(kind=e.kind, source=e.source, valid_until_us=micros(e.observed_at + e.ttl))
            for e in offer.evidence
        ),
        host=offer.key.sku if offer.location_tier in _OF_HOSTS else None,
        retention_days=_of_type(int, policy.get("retention_days")),
        trains_on_data=_of_type(bool, policy.get("training")),
        paths=tuple(paths),
    )


# Where an offer is one machine and not a kind of machine.
_OF_HOSTS = ("anonymous", "claimed", "verified_host")
T = TypeVar("T", int, bool)


def _of_type(kind: type[T], stated: object) -> T | None:
    """What a provider states, where it is what it should be; anything else is unknown."""
    return stated if type(stated) is kind else None


def hardware(offer: Offer) -> str:
    """What the planner knows speeds for: the accelerator's name and how a worker gets onto it (`cpu/process`).

    The launch kind is part of it because a model may come as a process here and only as an image there. What computes behind a
    token endpoint is its affair: there it is the endpoint's model.
    """
    if offer.launch == "token_api":
        return f"{offer.market}:{offer.key.region or '-'}:{offer.key.sku}/token_api"
    return f"{offer.accelerator.name}/{offer.launch}"


def offer_view(
    offer: Offer,
    *,
    excluded: str | None,
    load_s: int,
    start_up: Mapping[str, Timings] | None = None,
    unfit: Mapping[str, str] | None = None,
    paths: Sequence[PathFacts] = (),
    not_for: Sequence[str] = (),
    held_back: Mapping[str, str] | None = None,
    rtt_ms: Mapping[str, int] | None = None,
) -> tuple[OfferView, Facts]:
    """An offer as the planner sees it, with the facts that its `facts_hash` names.

    `start_up` and `unfit` are by model: see OfferView. `not_for` are the projects with an account of their own at its market;
    `held_back` is by project; `rtt_ms` is by market and region, or by market (`ObjectSettings`).
    """
    facts = facts_of(offer, paths)
    is_usd, is_sunk = offer.currency == "USD", offer.pricing == "reserved" and bool(offer.sunk_per_hour)
    # of what is paid for anyway, what using it costs more is known where it is 0; elsewhere 0 is unknown
    priced = offer.price is not None and is_usd and price_problem(offer) is None
    boot_s = offer.boot_s if offer.boot_s is not None else DEFAULT_BOOT_S[offer.launch]
    tokens = offer.per_million if priced else None
    view = OfferView(
        key=str(offer.key),
        market=offer.market,
        accelerator=hardware(offer),
        pricing=offer.pricing,
        price_nano_hour=to_nano(offer.price) if priced and offer.price is not None else None,
        capacity=_capacity(offer),
        facts_hash=digest(facts),
        timings=Timings(boot_s=boot_s, load_s=load_s),
        domain=f"{offer.market}/{offer.key.region}" if offer.key.region else None,
        sunk=is_sunk,
        lost_nano=lost_deposit_nano(offer),
        ingress_nano_gb=_nano_up(offer.ingress_per_gb) if is_usd else 0,
        egress_nano_gb=_nano_up(offer.egress_per_gb) if is_usd else 0,
        granularity_s=offer.granularity_s,
        minimum_s=offer.minimum_s,
        per_million_nano=None if tokens is None else (to_nano(tokens.input), to_nano(tokens.output)),
        hazard=float(offer.interruption_per_hour) if offer.interruption_per_hour is not None else None,
        excluded=excluded or offer.quarantined,
        start_up=dict(start_up or {}),
        unfit=dict(unfit or {}),
        quota=offer.quota.group if offer.quota else "",
        quota_units=max(1, offer.quota.units) if offer.quota else 1,
        only_for=holder_of(offer.market),
        not_for=tuple(not_for),
        held_back=dict(held_back or {}),
        rtt_ms=_rtt_ms(offer, rtt_ms or {}),
    )
    return view, facts


def _rtt_ms(offer: Offer, stated: Mapping[str, int]) -> int | None:
    """Of its region what is stated, else of its market's provider: whose account it is of does not move the machines."""
    provider = offer.key.provider
    return stated.get(f"{provider}/{offer.key.region}", stated.get(provider))


def returned_deposit_nano(offer: Offer) -> int:
    """What of the deposit comes back at the end of each machine."""
    whole = _nano_up(offer.deposit) if offer.currency == "USD" else 0
    return max(0, whole - lost_deposit_nano(offer))


def lost_deposit_nano(offer: Offer) -> int:
    """What of the deposit is not returned, for each machine."""
    return _nano_up(offer.deposit * (1 - offer.refundable_fraction)) if offer.currency == "USD" else 0


def _nano_up(amount: Decimal) -> int:
    """Nano-USD, rounded up; what is no amount is nothing."""
    return max(0, math.ceil(amount.scaleb(9))) if amount.is_finite() else 0


def _capacity(offer: Offer) -> int | None:
    """Where the market never says what it has (EC2), the quota is all that is known: as many as it grants, and one at least, so
    that an empty quota is what stops it and is named."""
    if offer.capacity is not None or offer.quota is None:
        return offer.capacity
    return max(1, offer.quota.left // max(1, offer.quota.units))


def throughput_of(
    profile: ModelProfile,
    measured: Mapping[tuple[str, str, str], tuple[int, int, float]],
    estimated: Mapping[str, Speed] | None = None,
    slower: Mapping[tuple[str, str, str], float] = MappingProxyType({}),
) -> list[Throughput]:
    """One entry per hardware on which the profile can be launched: measured where we have it, else its own estimate, else ours.

    `measured` is (input tokens, output tokens, busy seconds) by (model, precision, hardware). The planner adds the time of
    input and output, and both were done in the same busy time: the two rates are scaled alike, so that what was measured,
    planned again, takes the time that it took. `estimated` is by accelerator name; where the model ran faster or slower
    elsewhere than was estimated there, half of that (of its logarithm) is believed of where it has not run yet. `slower` is what
    was observed of how long requests take.
    """
    speeds = {
        name: Speed(*rates, cautious=1.0, source="profile", sequences=at_once(profile))
        for name, rates in profile.tokens_per_s.items()
    }
    speeds = {**(estimated or {}), **speeds}
    scales = {
        label: (tokens[0] / speeds[name].input_per_s + tokens[1] / speeds[name].output_per_s) / tokens[2]
        for name in speeds
        for label in (f"{name}/{launch}" for launch in profile.launches)
        if (tokens := measured.get((profile.id, profile.precision, label)))
    }
    ours = [math.log(scale) for label, scale in scales.items() if speeds[label.rpartition("/")[0]].source == "roofline"]
    elsewhere = math.exp(0.5 * sum(ours) / len(ours)) if ours else 1.0
    entries = []
    for name, speed in speeds.items():
        for launch in profile.launches:
            label = f"{name}/{launch}"
            scale = scales.get(label, elsewhere if speed.source == "roofline" else 1.0)
            entries.append(
                Throughput(
                    model=profile.id,
                    precision=profile.precision,
                    accelerator=label,
                    input_per_s=speed.input_per_s * scale,
                    output_per_s=speed.output_per_s * scale,
                    source="measured" if label in scales else speed.source,
                    cautious=1.0 if label in scales else speed.cautious,
                    sequences=speed.sequences,
                    fixed=speed.fixed,
                    slower=slower.get((profile.id, profile.precision, label), 1.0),
                )
            )
    return entries


def is_known_on(profile: ModelProfile, offer: Offer) -> bool:
    """Whether the profile is launched this way, and a speed is given or can be estimated for the offer's accelerator."""
    if offer.launch not in profile.launches:
        return False
    return offer.accelerator.name in profile.tokens_per_s or can_estimate(profile, offer.accelerator)


def usd(nano: int) -> str:
    """Nano-USD as a decimal string, exact, without an exponent."""
    return format(Decimal(nano).scaleb(-9).normalize() if nano else Decimal(0), "f")
