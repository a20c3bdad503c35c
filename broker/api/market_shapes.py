"""Bodies about markets: which there are, what an offer did and why it is trusted, and rate cards."""

from __future__ import annotations

from datetime import date
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from broker.api.shapes import Own, SaidDay


class Market(BaseModel):
    """One market; the field names are those of `broker markets --json`. `age_s` is of its newest good poll, or of the
    newest price of its card or snapshot; None: never; `reason` says what is missing, or what went wrong last."""

    model_config = ConfigDict(serialize_by_alias=True)

    name: str
    class_: str = Field(alias="class")
    prices: Literal["live", "card", "snapshot", "unsupported"]
    renting: bool
    credentials: bool
    age_s: int | None
    offers: int
    reason: str | None


class MarketList(BaseModel):
    object: Literal["list"] = "list"
    data: list[Market]


class Change(BaseModel):
    """What held from `at` on (Unix seconds). Prices are USD per instance-hour, for tokens per million."""

    at: int
    state: str
    usd_per_hour: str | None
    usd_per_million_input: str | None
    usd_per_million_output: str | None
    capacity: int | None
    reason: str | None


class Day(BaseModel):
    """One UTC day whose changes were rolled up."""

    day: date
    changes: int
    min_usd: str | None
    mean_usd: str | None
    max_usd: str | None
    listed: str = Field(description="part of the day, 0 to 1")
    available: str = Field(description="part of the day in which it was also not sold out, 0 to 1")


class History(BaseModel):
    object: Literal["offer.history"] = "offer.history"
    key: str
    since: int
    until: int
    days: list[Day]
    changes: list[Change]


class Hour(BaseModel):
    """One hour of the day, UTC, over all that is remembered of a pool; None: never seen at that hour."""

    hour: int
    usd_per_gpu_hour: str | None
    listed: str | None
    available: str | None


class Pool(BaseModel):
    """The time-of-day profile of the offers of one market, accelerator and pricing."""

    object: Literal["pool"] = "pool"
    market: str
    gpu: str
    pricing: str
    offers: int
    hours: list[Hour]


class Evidence(BaseModel):
    kind: str
    source: str
    observed_at: int
    valid_until: int
    valid: bool


class TrustPoint(BaseModel):
    name: str
    points: int
    most: int
    why: str


class Learned(BaseModel):
    """What our own rentals of the offer taught. Counts are of all projects' rentals: None for a key of one project."""

    asked: int | None
    started: int | None
    failed: int | None
    interrupted: int | None
    ran_s: int | None
    boot_s: int | None
    failed_share: str | None
    interruptions_per_hour: str | None
    quoted_usd_per_hour: str | None
    billed_usd_per_hour: str | None


class Endpoint(BaseModel):
    """Where tokens are bought. `context_tokens` is of prompt and answer together; None: nobody said it."""

    model: str
    serves: str
    base_url: str
    mode: str
    window_s: int | None
    context_tokens: int | None
    max_output_tokens: int | None
    precision: str | None


class DataPolicy(BaseModel):
    """What is done with prompts there, and whose word that is; None: nobody promised it, and a policy that asks denies it."""

    retention_days: int | None
    training: bool | None
    source: str | None


class Explained(BaseModel):
    """One offer with all that is known of it. `max_age_s`: how old its price may become; None: it is never chosen."""

    object: Literal["offer.explanation"] = "offer.explanation"
    key: str
    usd_per_hour: str | None
    components: dict[str, str]
    sunk_usd_per_hour: str | None
    usd_per_million: dict[str, str] | None
    endpoint: Endpoint | None
    data_policy: DataPolicy | None
    raw: dict[str, str]
    raw_sha256: str
    source: str
    observed_at: int
    age_s: int
    max_age_s: int | None
    capacity: int | None
    deposit_usd: str
    refundable_fraction: str
    granularity_s: int
    minimum_s: int
    quota: str | None = Field(description="what our account may still start of it, together with which others")
    egress_usd_per_gb: str
    ingress_usd_per_gb: str
    evidence: list[Evidence]
    location_tier: str
    operator: str | None
    operator_jurisdictions: list[str] | None
    gpu_facts: dict[str, str]
    learned: Learned
    trust: int
    trust_points: list[TrustPoint]
    may_be_chosen: bool
    reason: str | None = Field(
        description="why it may not be chosen; or why it may not where a policy asks for its place"
    )


class CardImport(Own):
    """A rate card: `text` is its CSV. `market` names it, and its offers; `provider` is whose region names it uses."""

    market: str = Field(
        pattern=r"^[a-z0-9][a-z0-9-]{0,63}$", description="a name of small letters, digits and dashes, such as my-card"
    )
    text: str = Field(max_length=8_000_000)
    source: str = Field(default="rate card", min_length=1, max_length=500)
    provider: str | None = Field(default=None, max_length=64)
    observed_on: SaidDay | None = None
    valid_days: int | None = Field(default=None, ge=1, le=3650)
    dry_run: bool = False


class CardFinding(BaseModel):
    line: int
    code: str
    message: str


class CardDoubt(BaseModel):
    key: str
    reason: str


class CardImported(BaseModel):
    """What came of a card. With findings nothing was taken over; `dry_run` never does. `doubted` are the first of the
    quarantined, with the reason: they are listed and never chosen, until a mended card is handed in."""

    object: Literal["rate_card"] = "rate_card"
    market: str
    dialect: str | None
    offers: int
    quarantined: int
    valid_until: int
    stored: bool
    findings: list[CardFinding]
    doubted: list[CardDoubt]
