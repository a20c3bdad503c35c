"""How an executor speaks to the token endpoint that its rental buys at: the endpoint's address and key in place of an engine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from broker.market_settings import TokenBuying
from broker.settings import Settings
from ledger.money import to_nano
from markets.offer import TokenPrice
from markets.offer_record import offer_from_record
from markets.tables import RentalRow
from workers.engines import engine_spec
from workers.errors import UnknownModel
from workers.profile import ModelProfile


def buying(settings: Settings) -> Mapping[str, TokenBuying]:
    """What is bought, by market."""
    return {name: own.buy for name, own in settings.providers.items() if own.buy is not None}


def is_bought(row: RentalRow) -> bool:
    """Whether the rental buys tokens; else it is a machine."""
    return row.pricing == "token"


def covered(row: RentalRow) -> frozenset[str]:
    """The batches whose worst case the rental's hold has set aside: those it was rented for, and those for which the hold
    was extended since (broker/control/accrue.py). No other may buy there."""
    return frozenset((*row.purpose.get("batches", ()), *row.purpose.get("covered", ())))


def executor_profile(profile: ModelProfile) -> ModelProfile:
    """Of the process that buys: it runs on this machine and has no weights."""
    return replace(profile, engine="url", base_url="http://token-endpoint.invalid", launches=("process",), image=None)


def endpoint_spec(settings: Settings, profile: ModelProfile, row: RentalRow) -> dict[str, Any]:
    """The engine object for the agent. Raises UnknownModel where the settings no longer buy this model there."""
    offer = offer_from_record(row.facts)
    own = settings.providers.get(row.market)
    terms = own.buy if own else None
    if own is None or terms is None or offer.endpoint is None or terms.models.get(profile.id) != offer.endpoint.model:
        raise UnknownModel(f"providers.{row.market}.buy has no model {profile.id!r} as it was planned with")
    key = own.credentials.get("api_key")
    there = replace(
        executor_profile(profile),
        base_url=offer.endpoint.base_url,
        weights=offer.endpoint.model,
        api_key=None if key is None else key.get_secret_value(),
        parallel=terms.concurrency,
        request_timeout_s=terms.request_timeout_s,
        health_path=None,
        metrics_path=None,
        metrics={},
    )
    limits = {"tokens_per_minute": max(1, terms.tokens_per_minute // terms.executors)}
    if terms.requests_per_minute is not None:
        limits["requests_per_minute"] = max(1, terms.requests_per_minute // terms.executors)
    unstated = {"unstated_tokens": settings.jobs.default_output_tokens} if terms.limit_unstated else {}
    return engine_spec(there) | {"limits": limits, "patience_s": terms.patience_s} | unstated


def most_nano_hour(price: TokenPrice, terms: TokenBuying) -> int:
    """What one executor spends in an hour at most: its part of the limit, all of it in the dearest class."""
    dearest = max(to_nano(each) for each in (price.input, price.output, price.cached) if each is not None)
    return -(-max(1, terms.tokens_per_minute // terms.executors) * 60 * dearest // 1_000_000)


def spends_at_most(settings: Settings, row: RentalRow) -> int | None:
    """Nano-USD that an executor spends in an hour at most. None: its limits are not in the settings any more."""
    own, price = settings.providers.get(row.market), offer_from_record(row.facts).per_million
    return None if own is None or own.buy is None or price is None else most_nano_hour(price, own.buy)
