"""Bodies of quotes and explanations: what a batch would cost or costs, where it would run or runs, and what was rejected."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

from broker.api.shapes import BatchWishes, Own, Relaxation


class QuoteCreate(Own):
    """A dry run: an uploaded file with the wishes of a batch; nothing is created or held."""

    input_file_id: str
    endpoint: str | None = None
    completion_window: str = "24h"
    x_broker: BatchWishes | None = None


class FunnelStep(BaseModel):
    """How many offers a rule removed; the last step is `eligible`. The counts sum to the number of offers."""

    rule: str
    count: int
    example: str | None


class Chosen(BaseModel):
    offer_key: str
    share: str = Field(description="fraction of the work, decimal")
    usd: str
    end: int
    usd_per_million_tokens: str
    next_best: str | None
    next_best_usd_per_million_tokens: str | None
    cheaper_excluded: list[tuple[str, str]] = Field(description="cheaper offers and the rule that excluded each")
    sentence: str
    concurrency: int | None = Field(
        default=None,
        description="of a batch with max_p95_ms: so many of its requests are in the engine at once at most",
    )
    p95_ms: int | None = Field(default=None, description="and what 95 of 100 of them are expected to take at most")


class Begins(BaseModel):
    """A part that begins later, though it could now: the offer was cheaper at that `hour` on past days, or cheaper `spot` that is
    sold out (`awaits`) is expected back, or machines in use (`awaits`) will be `free`; then `begin` is when it begins here at
    last."""

    offer_key: str
    begin: int
    why: Literal["hour", "spot", "free"]
    awaits: str | None
    saving: str = Field(description="expected, as a part of the cost")
    sentence: str


class Saving(BaseModel):
    """One change that would make the batch cheaper, found by planning it so. A suggestion: compliance decides about
    residency, and no rule is ever relaxed by the planner. `field`: deadline_us, residency.country, residency, capacity."""

    field: str
    needed: str
    offer_key: str
    saves_usd: str
    message: str


class PolicyMonth(BaseModel):
    """What the batch's policy has cost its project in a UTC month, by when each machine was decided on. `of_usd` is the books'
    spend under that policy, `not_estimated_usd` the part of that of which it is not known, `estimated_usd` what of `usd` was not
    found by planning the queue again without the policy, but estimated from what full offers are worth."""

    policy: str
    period: str
    usd: str
    of_usd: str
    not_estimated_usd: str
    estimated_usd: str = "0"
    sentence: str


class VariantQuote(BaseModel):
    """A profile that may serve the batch, and what that would come to."""

    profile: str
    model: str
    precision: str
    chosen: bool
    feasible: bool
    usd: str | None
    end: int | None
    waiting_on: str | None
    reason: str | None = Field(description="why it is not feasible")
    sentence: str | None = Field(default=None, description="why the plan serves the batch by this one")


class Explanation(BaseModel):
    """What the plan chose for a work, what it rejected and why; or why nothing was feasible."""

    feasible: bool
    plan: str | None
    planned_at: int | None
    lines: int
    input_tokens: int
    output_tokens: int
    offers: int
    funnel: list[FunnelStep]
    chosen: list[Chosen]
    usd: str | None
    end: int | None
    waiting_on: str | None
    reasons: list[str]
    relaxations: list[Relaxation]
    begins: list[Begins] = Field(
        default_factory=list, description="what waits for a better moment; empty: all begins now"
    )
    savings: list[Saving] = Field(
        default_factory=list, description="what would make it cheaper, each verified by planning it so, largest first"
    )
    policy_month: PolicyMonth | None = Field(
        default=None,
        description="what its policy costs its project this month; null of a quote, and while nothing was spent",
    )
    variants: list[VariantQuote] = Field(
        default_factory=list, description="the profiles that may serve it, as quoted before it began"
    )


class Elsewhere(BaseModel):
    """What the same work would cost at a price that is known of and cannot be had here now: of the snapshot, of a rate card, or
    of a market whose prices are only read. No policy was applied, and starting up is not in it."""

    offer_key: str
    usd: str
    usd_per_million_tokens: str = Field(description="USD per million output tokens")
    as_of: int
    source: str


class Outlook(BaseModel):
    """What the batch comes to when answers are as long as they may be (nine of ten batches stay below)."""

    output_tokens: int
    feasible: bool
    usd: str | None
    end: int | None


class TokenMarketQuote(BaseModel):
    """The same tokens bought by the million. `reason`: why they may not be bought there."""

    offer_key: str
    usd: str
    usd_p90: str
    usd_per_million_tokens: str
    allowed: bool
    reason: str | None


class BeginLater(BaseModel):
    """The chosen machine was cheaper at a later hour on past days of the same kind; the deadline leaves room for that."""

    begin: int
    saves_usd: str = Field(description="expected")
    sure: str = Field(description="the part of the cost that is saved with 95 % confidence")
    days: int = Field(description="past days that were compared")


class Quote(Explanation):
    id: str
    object: Literal["quote"] = "quote"
    model: str
    served_model: str = Field(description="the configured profile that would answer")
    endpoint: str
    expires_at: int
    tokens_by: Literal["estimate", "tokenizer"] = Field(
        default="estimate",
        description="of the input: by characters, or corrected by what the model's own tokenizer makes of `sampled_lines`",
    )
    sampled_lines: int = 0
    elsewhere: list[Elsewhere] = Field(default_factory=list, description="the cheapest prices that are not placed on")
    usd_per_million_tokens: str | None = Field(default=None, description="of all tokens, in and out, as expected")
    p90: Outlook | None = Field(default=None, description="`usd` and `end` are the p50 beside it; null without a plan")
    token_market: list[TokenMarketQuote] = Field(
        default_factory=list, description="the cheapest token endpoints that sell the model, allowed ones first"
    )
    advice: Literal["rent", "buy_tokens", "none"] = Field(
        default="none", description="what is cheaper of what is allowed"
    )
    advice_reason: str = ""
    later: BeginLater | None = Field(default=None, description="a better hour to begin; null: begin now")
