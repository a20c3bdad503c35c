"""From what is said of one model at one endpoint to our offer: in one place what an unknown price or an odd one means."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Any

from markets.facts.regions import Located, operators
from markets.offer import (
    Accelerator,
    Offer,
    OfferKey,
    TokenEndpoint,
    TokenMode,
    TokenPrice,
    price_problem,
    quarantine,
    raw_digest,
)

# What computes is the endpoint's affair; it is in the key because a key has seven parts.
TOKENS = Accelerator(kind="none", name="tokens")


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenSaid:
    """What was said of one model. Prices are per million tokens in `currency`; None: not said. A cached price of 0 is unknown,
    too: what is read from a cache then counts as input. `serves` is our name of the model, by default the endpoint's.
    """

    market: str
    model: str
    base_url: str
    input: Decimal | None
    output: Decimal | None
    source: str
    raw: Mapping[str, Any]
    cached: Decimal | None = None
    currency: str = "USD"
    serves: str | None = None
    mode: TokenMode = "sync"
    window_s: int | None = None
    context_tokens: int | None = None
    max_output_tokens: int | None = None
    precision: str | None = None
    region: str | None = None
    where: Located | None = None
    operator: str | None = None
    data_policy: Mapping[str, Any] | None = None
    words: Mapping[str, str] = field(default_factory=dict)
    not_for_sale: str | None = None


def token_offer(said: TokenSaid, at: datetime) -> Offer:
    """The offer as of `at`. One that cannot be trusted is listed with the reason, and never chosen."""
    place = said.where
    known = operators().get(said.market)
    made = Offer(
        key=OfferKey(said.market, said.region, None, _sku(said), TOKENS.name, 0, "token"),
        launch="token_api",
        accelerator=TOKENS,
        currency=said.currency,
        price=None,
        per_million=_price(said),
        observed_at=at,
        source=said.source,
        raw_sha256=raw_digest(said.raw),
        country=place.country if place else None,
        evidence=place.evidence if place else (),
        location_tier=place.location_tier if place else "anonymous",
        operator=said.operator or (known.operator if known else None),
        jurisdictions=place.jurisdictions if place else None,
        data_policy=said.data_policy,
        raw=said.words,
        endpoint=TokenEndpoint(
            model=said.model,
            base_url=said.base_url.rstrip("/"),
            serves=said.serves or said.model,
            mode=said.mode,
            window_s=said.window_s,
            context_tokens=said.context_tokens,
            max_output_tokens=said.max_output_tokens,
            precision=said.precision,
        ),
    )
    for reason in (price_problem(made), said.not_for_sale and f"offer {made.key}: {said.not_for_sale}"):
        if reason:
            made = quarantine(made, reason)
    return made


def _sku(said: TokenSaid) -> str:
    """A batch of the same model is another thing to buy."""
    return said.model if said.mode == "sync" else f"{said.model}:{said.mode}"


def _price(said: TokenSaid) -> TokenPrice | None:
    if said.input is None or said.output is None:
        return None
    return TokenPrice(input=said.input, output=said.output, cached=said.cached or None)
