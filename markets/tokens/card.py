"""The price card of a token endpoint: one TOML file, read here alone.

    format = 1
    market = "example"                                  # the offers' market, and the file's name
    operator = "Example Inc."
    base_url = "https://api.example.com/v1"             # OpenAI-compatible; a part in {braces} is each customer's own
    currency = "USD"
    source = "https://example.com/pricing"              # where the prices stand
    observed_on = 2026-11-27                            # when they were read there

    [data_policy]                                       # leave away what nobody says: it is then unknown
    retention_days = 0
    training = false
    source = "https://example.com/privacy"

    [batch]                                             # a batch API at a part of the price
    times = 0.5
    window_h = 24
    source = "https://example.com/batch"

    [[models]]
    id = "llama-3.3-70b"                                # as the endpoint names it
    serves = "llama-3.3-70b-instruct"                   # as this broker does, where that differs
    input = 0.59                                        # per million tokens
    cached = 0.29
    output = 0.79
    context = 131072
    max_output = 32768
    precision = "fp8"
    region = "eu-1"                                     # where this price holds, with a country only if somebody vouches
    country = "FR"
    batch = false                                       # not sold in batches, whatever stands above

Prices are decimals, never floats. A card without models is a template: it says what is missing.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, time
from decimal import Decimal
from pathlib import Path
from typing import Any

from markets.errors import BadCard
from markets.facts.regions import declared
from markets.offer import Offer
from markets.tokens.listing import TokenSaid, token_offer

FORMAT = 1
_CARD = {
    "format",
    "market",
    "operator",
    "base_url",
    "currency",
    "source",
    "observed_on",
    "data_policy",
    "batch",
    "models",
}
_MODEL = {
    "id",
    "serves",
    "input",
    "cached",
    "output",
    "context",
    "max_output",
    "precision",
    "region",
    "country",
    "batch",
}
_PRICES = ("input", "cached", "output")
_POLICY = {"retention_days", "training", "source"}
_BATCH = {"times", "window_h", "source"}


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch API: `times` the price of the ordinary one, answered within `window_s`."""

    times: Decimal
    window_s: int
    source: str


@dataclass(frozen=True, slots=True)
class Card:
    """A card that has been read. `models` are tables as in the file, their numbers checked."""

    market: str
    operator: str
    base_url: str
    currency: str
    source: str
    observed_on: date
    data_policy: Mapping[str, Any] | None
    batch: Batch | None
    models: tuple[Mapping[str, Any], ...]


def read_card(text: str, name: str) -> Card:
    """The card in the file `name`. Raises BadCard with everything that is wrong in it, each with its place."""
    try:
        table = tomllib.loads(text, parse_float=Decimal)
    except tomllib.TOMLDecodeError as error:
        raise BadCard(f"{name} is not TOML: {error}") from error
    problems = list(_problems(table))
    if problems:
        raise BadCard(f"{name}: " + "; ".join(problems))
    batch = table.get("batch")
    return Card(
        market=table["market"],
        operator=table["operator"],
        base_url=table["base_url"],
        currency=table["currency"],
        source=table["source"],
        observed_on=table["observed_on"],
        data_policy=table.get("data_policy"),
        batch=batch and Batch(Decimal(batch["times"]), int(batch["window_h"] * 3600), batch["source"]),
        models=tuple(table.get("models", ())),
    )


def card_offers(card: Card) -> list[Offer]:
    """The offers of a card, as of the day on which its prices were read."""
    at = datetime.combine(card.observed_on, time(), UTC)
    return [offer for model in card.models for offer in _offers(card, model, at)]


def read_file(path: Path) -> Card:
    """Raises BadCard also when the file cannot be read."""
    try:
        return read_card(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise BadCard(f"price card {path} cannot be read: {error}") from error


def _offers(card: Card, model: Mapping[str, Any], at: datetime) -> Iterator[Offer]:
    """Its ordinary offer, and the batch one. What is kept of a batch is another matter: its policy is unknown."""
    ordinary = TokenSaid(
        market=card.market,
        model=model["id"],
        base_url=card.base_url,
        input=_decimal(model.get("input")),
        output=_decimal(model.get("output")),
        cached=_decimal(model.get("cached")),
        currency=card.currency,
        serves=model.get("serves"),
        context_tokens=model.get("context"),
        max_output_tokens=model.get("max_output"),
        precision=model.get("precision"),
        region=model.get("region"),
        where=_where(card, model, at),
        operator=card.operator,
        data_policy=card.data_policy,
        source=card.source,
        raw={"model": model, "currency": card.currency, "batch": None},
        words={name: f"{model[name]} {card.currency} per million" for name in _PRICES if name in model},
        not_for_sale=_incomplete(card),
    )
    yield token_offer(ordinary, at)
    if card.batch is not None and model.get("batch", True):
        yield token_offer(_batch(ordinary, card.batch, model), at)


def _incomplete(card: Card) -> str | None:
    """An address with a part in braces is somebody's own."""
    if "{" not in card.base_url:
        return None
    return f"its address is {card.base_url}, and the part in braces is yours to say: providers.{card.market}.url"


def _batch(said: TokenSaid, batch: Batch, model: Mapping[str, Any]) -> TokenSaid:
    return replace(
        said,
        input=said.input and said.input * batch.times,
        output=said.output and said.output * batch.times,
        cached=None,
        mode="batch",
        window_s=batch.window_s,
        data_policy=None,
        raw={"model": model, "currency": said.currency, "batch": str(batch.times)},
        words={**said.words, "batch": f"{batch.times} of the price ({batch.source})"},
    )


def _where(card: Card, model: Mapping[str, Any], at: datetime) -> Any:
    if "country" not in model:
        return None
    return declared(card.market, model["country"], source=card.source, observed_at=at, kind="operator_statement")


def _decimal(number: Any) -> Decimal | None:
    return None if number is None else Decimal(number)


def _problems(table: Mapping[str, Any]) -> Iterator[str]:
    yield from _unknown(table, _CARD, "the card")
    if table.get("format") != FORMAT:
        yield f"format is {table.get('format')!r}, and {FORMAT} is what can be read"
    for name in ("market", "operator", "base_url", "currency", "source"):
        if not isinstance(table.get(name), str) or not table[name]:
            yield f"{name} is {table.get(name)!r}; it must be a text"
    if not isinstance(table.get("observed_on"), date) or isinstance(table.get("observed_on"), datetime):
        yield f"observed_on is {table.get('observed_on')!r}; it must be a date, such as 2026-11-27"
    yield from _policy_problems(table.get("data_policy"))
    yield from _batch_problems(table.get("batch"))
    models = table.get("models", [])
    if not isinstance(models, list):
        yield "models must be tables: [[models]]"
        return
    seen = set[tuple[Any, Any]]()
    for number, model in enumerate(models, 1):
        where = f"models[{number}] ({model.get('id')!r})"
        yield from _model_problems(model, where)
        if (model.get("id"), model.get("region")) in seen:
            yield f"{where} stands there twice"
        seen.add((model.get("id"), model.get("region")))


def _model_problems(model: Mapping[str, Any], where: str) -> Iterator[str]:
    yield from _unknown(model, _MODEL, where)
    if not isinstance(model.get("id"), str) or not model["id"]:
        yield f"{where} has no id"
    for name in _PRICES:
        if name == "cached" and name not in model:
            continue
        if not _is_positive(model.get(name)):
            yield f"{where}: {name} is {model.get(name)}; a price per million tokens must be more than 0"
    for name in ("context", "max_output"):
        if name in model and (not isinstance(model[name], int) or isinstance(model[name], bool) or model[name] < 1):
            yield f"{where}: {name} is {model[name]!r}; it must be a number of tokens"
    for name in ("serves", "precision", "region", "country"):
        if name in model and not isinstance(model[name], str):
            yield f"{where}: {name} is {model[name]!r}; it must be a text"
    if not isinstance(model.get("batch", True), bool):
        yield f"{where}: batch is {model['batch']!r}; it must be true or false"


def _policy_problems(policy: Any) -> Iterator[str]:
    if policy is None:
        return
    if not isinstance(policy, dict):
        yield "data_policy must be a table"
        return
    yield from _unknown(policy, _POLICY, "data_policy")
    if not isinstance(policy.get("source"), str):
        yield "data_policy has no source; say who promises it, and where"
    if "training" in policy and not isinstance(policy["training"], bool):
        yield f"data_policy.training is {policy['training']!r}; it must be true or false"
    days = policy.get("retention_days", 0)
    if not isinstance(days, int) or isinstance(days, bool) or days < 0:
        yield f"data_policy.retention_days is {days!r}; it must be a number of days"


def _batch_problems(batch: Any) -> Iterator[str]:
    if batch is None:
        return
    if not isinstance(batch, dict):
        yield "batch must be a table"
        return
    yield from _unknown(batch, _BATCH, "batch")
    if not _is_positive(batch.get("times")) or batch["times"] > 1:
        yield f"batch.times is {batch.get('times')!r}; it must be a part of the price, such as 0.5"
    if not _is_positive(batch.get("window_h")):
        yield f"batch.window_h is {batch.get('window_h')!r}; it must be a number of hours"
    if not isinstance(batch.get("source"), str):
        yield "batch has no source"


def _unknown(table: Mapping[str, Any], known: set[str], where: str) -> Iterator[str]:
    for name in sorted(set(table) - known):
        yield f"{where} has {name!r}, which is not one of {', '.join(sorted(known))}"


def _is_positive(number: Any) -> bool:
    if isinstance(number, bool) or not isinstance(number, (int, Decimal)):
        return False
    return Decimal(number).is_finite() and number > 0
