"""The offer: one thing that can be rented, at one price, in one place, with the evidence for that place.

An offer is a value. It is never the database row (tables.py) and never what a provider sent (each adapter maps that).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, Literal, cast
from urllib.parse import quote, unquote

Pricing = Literal["on_demand", "spot", "bid", "reserved", "token"]
Launch = Literal["vm", "container", "kubernetes", "process", "token_api"]
AcceleratorKind = Literal["nvidia", "amd", "tpu", "trainium", "gaudi", "none"]
TokenMode = Literal["sync", "batch"]
LocationTier = Literal["anonymous", "claimed", "verified_host", "named_datacenter", "hyperscaler_region"]
Confidentiality = Literal["none", "at_rest", "dedicated", "cpu_tee", "gpu_tee"]

# `aws~acme` is the market aws with the account of the project acme.
ACCOUNT = "~"


@dataclass(frozen=True, slots=True)
class Accelerator:
    """What computes: `count` devices of `memory_mib` each. `kind="none"` is a CPU-only machine with count 0."""

    kind: AcceleratorKind = "none"
    name: str = "cpu"
    form: str | None = None
    memory_mib: int = 0
    count: int = 0
    fraction: Decimal = Decimal(1)


@dataclass(frozen=True, slots=True)
class Evidence:
    """Why we believe where a machine is. It counts only while `observed_at + ttl` lies ahead."""

    kind: str
    source: str
    observed_at: datetime
    ttl: timedelta


@dataclass(frozen=True, slots=True)
class OfferKey:
    """The identity of an offer, equal across polls. A marketplace's ask id is its `sku`."""

    market: str
    region: str | None
    zone: str | None
    sku: str
    accelerator: str
    count: int
    pricing: Pricing

    def __str__(self) -> str:
        """`market/region/zone/sku/accelerator/count/pricing`, parts percent-encoded, `-` where there is none.

        >>> str(OfferKey("sandbox", "eu-de", None, "a/1", "cpu", 0, "spot"))
        'sandbox/eu-de/-/a%2F1/cpu/0/spot'
        """
        named = (self.market, self.region or "-", self.zone or "-", self.sku or "-", self.accelerator or "-")
        whole = f"{'/'.join(named)}/{self.count}/{self.pricing}"
        # One look at the whole of what is plain, as nearly every key is: six parts one by one took a fifth of an unchanged poll.
        if _PLAIN_KEY(whole) and "-" not in (self.market, self.region, self.zone, self.sku, self.accelerator):
            return whole
        parts = (self.market, self.region, self.zone, self.sku, self.accelerator, str(self.count), self.pricing)
        return "/".join("-" if part is None or part == "" else encode_part(part) for part in parts)

    @property
    def provider(self) -> str:
        """Whose market it is, whoever's account there is meant: see `markets.own_account`."""
        return self.market.partition(ACCOUNT)[0]

    @classmethod
    def parse(cls, text: str) -> OfferKey:
        """The inverse of `str`. Raises ValueError when `text` has not seven parts or an unknown pricing."""
        parts = text.split("/")
        if len(parts) != 7:
            raise ValueError(
                f"offer key {text!r} has {len(parts)} parts, not 7 (market/region/zone/sku/accelerator/count/pricing)"
            )
        market, region, zone, sku, accelerator, count, pricing = (None if p == "-" else unquote(p) for p in parts)
        if pricing not in ("on_demand", "spot", "bid", "reserved", "token"):
            raise ValueError(f"offer key {text!r}: unknown pricing {pricing!r}")
        kind = cast(Pricing, pricing)
        return cls(market or "", region, zone, sku or "", accelerator or "", int(count or 0), kind)


# What `quote` leaves as it is: nearly every part of nearly every key, and a poll may have 100,000 of them.
_PLAIN = re.compile(r"[A-Za-z0-9_.~-]+").fullmatch
_PLAIN_KEY = re.compile(r"[A-Za-z0-9_.~-]+(?:/[A-Za-z0-9_.~-]+){6}").fullmatch


def encode_part(part: str) -> str:
    """How one part of an offer's key is written."""
    # A part that is literally "-" must not read back as "none".
    if part == "-":
        return "%2D"
    return part if _PLAIN(part) else quote(part, safe="")


@dataclass(frozen=True, slots=True)
class TokenPrice:
    """Price of an OpenAI-compatible endpoint, per million tokens, in the offer's currency."""

    input: Decimal
    output: Decimal
    cached: Decimal | None = None


@dataclass(frozen=True, slots=True)
class TokenEndpoint:
    """Where tokens are bought, by the OpenAI API at `base_url` (without a slash at its end).

    `model` is the endpoint's own name of it, `serves` ours. `mode` batch: files of requests, answered within `window_s`.
    `context_tokens` is of prompt and answer together, `max_output_tokens` of the answer; None: not said, as is `precision`.
    """

    model: str
    base_url: str
    serves: str
    mode: TokenMode = "sync"
    window_s: int | None = None
    context_tokens: int | None = None
    max_output_tokens: int | None = None
    precision: str | None = None


@dataclass(frozen=True, slots=True)
class QuotaShare:
    """What limits how much of this and of other offers may run at once, as the market grants it to our account.

    Each instance counts `units` against the quota `group`, of which `left` units were not used when the offer was observed.
    `unit` says what they are: vCPUs, GPUs.
    """

    group: str
    units: int
    left: int
    unit: str


@dataclass(frozen=True, slots=True)
class Offer:
    """One rentable thing (contract C2).

    `price` is per whole instance-hour in `currency`, all-in, and equals the sum of `components` when these are given;
    None or not positive means *unknown*, and the offer is then quarantined, never free. `capacity` None is unknown,
    0 is sold out. `granularity_s` is the billing increment, `minimum_s` the least that is billed. `raw` is what the
    provider said, in words that a person reads (amounts with their units, the rate of exchange and its date). A token offer
    has no price of an hour: it has `per_million`, and says at which `endpoint`. `data_policy` is what is done with prompts
    there, with its source (`retention_days`, `training`, `source`); what is not in it is unknown.

    Capacity that is paid for whether it is used or not (a reservation, a commitment) has pricing `reserved`, what using it
    costs *more* as its price (0 is then known, not unknown), and what it costs anyway in `sunk_per_hour`, which must be positive.
    `quota` is what our account may still start of it, together with the other offers of its group; `capacity` is the market's.
    `interruption_per_hour` None is unknown; `notice_s` is the warning before an interruption (0: none).
    """

    key: OfferKey
    launch: Launch
    accelerator: Accelerator
    currency: str
    price: Decimal | None
    observed_at: datetime
    source: str
    raw_sha256: str
    components: Mapping[str, Decimal] = field(default_factory=dict)
    per_million: TokenPrice | None = None
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
    country: str | None = None
    subdivision: str | None = None
    evidence: tuple[Evidence, ...] = ()
    location_tier: LocationTier = "anonymous"
    confidentiality: Confidentiality = "none"
    operator: str | None = None
    jurisdictions: tuple[str, ...] | None = None
    data_policy: Mapping[str, Any] | None = None
    quarantined: str | None = None
    raw: Mapping[str, str] = field(default_factory=dict)
    sunk_per_hour: Decimal | None = None
    endpoint: TokenEndpoint | None = None
    quota: QuotaShare | None = None

    @property
    def market(self) -> str:
        return self.key.market

    @property
    def pricing(self) -> Pricing:
        return self.key.pricing


def quarantine(offer: Offer, reason: str) -> Offer:
    """The same offer, listed but never chosen, with the reason a person reads. The first reason stays."""
    return offer if offer.quarantined else replace(offer, quarantined=reason)


# What is below it is counted as 0 nano-USD: free.
LEAST_PRICE = Decimal("1e-9")


def price_problem(offer: Offer) -> str | None:
    """Why the price of `offer` cannot be believed, or None.

    Providers list 0 and empty for "we do not know" (Azure, Vast); planning with it would rent the unknown as free.
    """
    if offer.pricing == "token":
        return (
            None
            if _is_priced(offer.per_million)
            else f"offer {offer.key}: no positive token price; quarantined until one is seen"
        )
    if offer.price is None:
        return (
            f"offer {offer.key}: price is unknown; quarantined until a positive price is seen (source: {offer.source})"
        )
    if _is_sunk(offer):
        return None
    if not offer.price.is_finite() or offer.price < LEAST_PRICE:
        return (
            f"offer {offer.key}: price {offer.price} is unknown, not free; quarantined until a positive price is seen "
            f"(source: {offer.source})"
        )
    return None


def _is_priced(price: TokenPrice | None) -> bool:
    """Input and output must cost something. A cached price may be absent, but is not free, nor more than input."""
    if price is None:
        return False
    cached = price.input if price.cached is None else price.cached
    numbers = (price.input, price.output, cached)
    return (
        all(each.is_finite() for each in numbers) and min(price.input, price.output) > 0 and 0 < cached <= price.input
    )


def _is_sunk(offer: Offer) -> bool:
    """Reserved capacity whose cost is known and paid anyway: its marginal price of 0 is a fact."""
    sunk = offer.sunk_per_hour
    return offer.pricing == "reserved" and offer.price == 0 and sunk is not None and sunk.is_finite() and sunk > 0


def raw_digest(raw: Mapping[str, Any]) -> str:
    """sha256 of the provider's own words for this offer, canonical JSON: a price can be traced to its answer."""
    return hashlib.sha256(json.dumps(raw, sort_keys=True, separators=(",", ":"), default=str).encode()).hexdigest()
