"""A rate card: prices of machines as a CSV file, read here alone, in three dialects that its header tells apart.

Our own (the order of columns does not matter; only the first five must be there):

    sku,gpu,gpu_count,price,currency,per,of,pricing,market,region,zone,form,gpu_memory_gib,fraction,country,launch,capacity,
    observed_on,source,sunk_per_hour,granularity_s,minimum_s,egress_per_gb,interruption_per_hour,notice_s,confidentiality

`per` is hour (the default), second, minute, day or month; `of` is instance (the default) or gpu. `pricing` reserved with a
`sunk_per_hour` is capacity that is paid for anyway: its `price` is what using it costs more, mostly 0.

gpuhunt's catalogue (`instance_name, location, price, …, gpu_count, gpu_name, gpu_memory, spot`) and SkyPilot's (`InstanceType,
AcceleratorName, AcceleratorCount, …, Price, Region, SpotPrice`) are read as their projects write them, in USD an hour; SkyPilot's
row is two offers where it has a spot price. A price of 0 or none is unknown: the offer is listed and never chosen. Rows that
cannot be read are findings, each with its line; the others are offers all the same.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from decimal import Decimal, InvalidOperation
from types import MappingProxyType
from typing import Any, Literal, get_args

from markets.facts.accelerators import identify
from markets.facts.regions import Located, declared, located
from markets.hourly import FxRate, Hourly, Part, Per, hourly
from markets.offer import (
    Accelerator,
    Confidentiality,
    Launch,
    Offer,
    OfferKey,
    Pricing,
    price_problem,
    quarantine,
    raw_digest,
)

Dialect = Literal["broker", "gpuhunt", "skypilot"]
MIB = 1024
_NEEDED: Mapping[Dialect, tuple[str, ...]] = MappingProxyType(
    {
        "broker": ("sku", "gpu", "gpu_count", "price", "currency"),
        "gpuhunt": ("instance_name", "location", "price", "gpu_count", "gpu_name", "spot"),
        "skypilot": ("InstanceType", "AcceleratorName", "AcceleratorCount", "Price", "Region"),
    }
)


@dataclass(frozen=True, slots=True)
class Finding:
    """What is wrong with a line, and how to mend it. Line 1 is the header."""

    line: int
    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Card:
    """What a card says: offers with distinct keys, and what of it could not be read."""

    dialect: Dialect | None
    offers: tuple[Offer, ...]
    findings: tuple[Finding, ...]


@dataclass(frozen=True, slots=True)
class Terms:
    """What a card does not say itself. `provider` is whose regions these are, `market` what the offers are listed under."""

    market: str
    observed_at: datetime
    source: str
    provider: str
    fx: Mapping[str, FxRate]
    now: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Row:
    """One offer of any dialect, as words."""

    sku: str
    gpu: str
    gpu_count: str
    price: str
    pricing: str = "on_demand"
    currency: str = "USD"
    per: str = "hour"
    of: str = "instance"
    market: str = ""
    region: str = ""
    zone: str = ""
    form: str = ""
    gpu_memory_gib: str = ""
    fraction: str = ""
    country: str = ""
    launch: str = "vm"
    capacity: str = ""
    observed_on: str = ""
    source: str = ""
    sunk_per_hour: str = ""
    granularity_s: str = ""
    minimum_s: str = ""
    egress_per_gb: str = ""
    interruption_per_hour: str = ""
    notice_s: str = ""
    confidentiality: str = ""


def read_card(
    text: str,
    *,
    market: str,
    observed_at: datetime,
    source: str,
    provider: str | None = None,
    fx: Mapping[str, FxRate] | None = None,
    of_many: bool = False,
    now: datetime | None = None,
) -> Card:
    """The offers of a card. `observed_at` is when its prices held, unless a row says so itself; `provider` (default: the
    market) is whose region names it uses. A card is of one market unless `of_many`. `now`: a row of a day to come is a finding,
    one of today is of now. Never raises for what is in the text."""
    terms = Terms(market, observed_at, source, provider or market, fx or {}, now)
    reader = csv.DictReader(io.StringIO(text.removeprefix("\ufeff")), skipinitialspace=True)
    dialect = _dialect(tuple(reader.fieldnames or ()))
    if dialect is None:
        return Card(None, (), (_no_dialect(tuple(reader.fieldnames or ())),))
    offers: dict[str, Offer] = {}
    findings: list[Finding] = []
    for values in reader:
        line = reader.line_num
        if None in values:
            findings.append(Finding(line, "columns", "the line has more columns than the header"))
            continue
        try:
            for row in _ROWS[dialect]({name: (value or "").strip() for name, value in values.items() if name}):
                _require_market(row, market, of_many)
                offer = _offer(row, terms)
                if str(offer.key) in offers:
                    findings.append(
                        Finding(line, "twice", f"offer {offer.key} was already on the card; give each its own sku")
                    )
                else:
                    offers[str(offer.key)] = offer
        except _Unreadable as wrong:
            findings.append(Finding(line, wrong.code, str(wrong)))
    return Card(dialect, tuple(offers.values()), tuple(findings))


def _require_market(row: _Row, market: str, of_many: bool) -> None:
    if row.market not in ("", market) and not of_many:
        raise _Unreadable(
            "market", f"the line is of market {row.market!r}, the card of {market!r}; hand in one card for each"
        )


class _Unreadable(Exception):
    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def _offer(row: _Row, terms: Terms) -> Offer:
    if not row.sku:
        raise _Unreadable("sku", "the line has no sku; what would be rented?")
    count = int(_number(row.gpu_count or "0", "gpu_count"))
    memory = int(_number(row.gpu_memory_gib, "gpu_memory_gib") * MIB) if row.gpu_memory_gib else None
    fraction = _number(row.fraction, "fraction") if row.fraction else Decimal(1)
    chip = (
        identify(row.gpu, count=count, memory_mib=memory, form=row.form or None, fraction=fraction) if row.gpu else None
    )
    pricing: Pricing = _one_of(row.pricing, get_args(Pricing), "pricing")
    at = _observed(row.observed_on, terms) if row.observed_on else terms.observed_at
    priced = _price(row, count, terms)
    sunk, egress = (_beside(getattr(row, column), column, row, terms) for column in ("sunk_per_hour", "egress_per_gb"))
    market = row.market or terms.market
    name = chip.accelerator.name if chip else "cpu"
    offer = Offer(
        key=OfferKey(market, row.region or None, row.zone or None, row.sku, name, count, pricing),
        launch=_one_of(row.launch or "vm", get_args(Launch), "launch"),
        accelerator=chip.accelerator if chip else Accelerator(),
        currency=priced.currency,
        price=priced.price,
        observed_at=at,
        source=row.source or terms.source,
        raw_sha256=raw_digest({name: getattr(row, name) for name in row.__slots__}),
        components=priced.components,
        capacity=int(_number(row.capacity, "capacity")) if row.capacity else None,
        granularity_s=int(_number(row.granularity_s, "granularity_s")) if row.granularity_s else 1,
        minimum_s=int(_number(row.minimum_s, "minimum_s")) if row.minimum_s else 0,
        egress_per_gb=egress or Decimal(0),
        interruption_per_hour=_number(row.interruption_per_hour, "interruption_per_hour")
        if row.interruption_per_hour
        else None,
        notice_s=int(_number(row.notice_s, "notice_s")) if row.notice_s else 0,
        confidentiality=_one_of(row.confidentiality or "none", get_args(Confidentiality), "confidentiality"),
        raw=priced.raw,
        sunk_per_hour=sunk,
        **_where(row, market, terms, at).fields(),
    )
    for problem in (
        chip and chip.problem,
        priced.problem and f"offer {offer.key}: {priced.problem}",
        price_problem(offer),
    ):
        offer = quarantine(offer, problem) if problem else offer
    return offer


def _where(row: _Row, market: str, terms: Terms, at: datetime) -> Located:
    """The card's own word for the country is its operator's statement; else what the table knows of the region."""
    if row.country:
        return declared(
            market, row.country, source=row.source or terms.source, observed_at=at, kind="operator_statement"
        )
    return located(market if row.market else terms.provider, row.region, observed_at=at)


def _price(row: _Row, count: int, terms: Terms) -> Hourly:
    per: Per = _one_of(row.per or "hour", ("hour", "second", "minute", "day", "month"), "per")
    of: Literal["instance", "gpu"] = _one_of(row.of or "instance", ("instance", "gpu"), "of")
    if row.pricing == "reserved" and row.sunk_per_hour and row.price in ("", "0", "0.0", "0.00"):
        paid = hourly([Part("sunk", row.sunk_per_hour)], currency=row.currency, fx=terms.fx)
        words = {"sunk": f"{row.sunk_per_hour} {row.currency} per hour, paid whether used or not"}
        rate = {"fx": paid.raw["fx"]} if "fx" in paid.raw else {}
        return Hourly(None if paid.problem else Decimal(0), raw=words | rate, problem=paid.problem)
    return hourly([Part("machine", row.price, per=per, of=of)], currency=row.currency, gpus=count, fx=terms.fx)


def _beside(text: str, column: str, row: _Row, terms: Terms) -> Decimal | None:
    """An amount beside the price, in dollars as that is; None: not said, or in a currency without a rate, which is then the
    price's problem, too."""
    amount = _number(text, column) if text else None
    if not amount:
        return amount
    return hourly([Part(column, text)], currency=row.currency, fx=terms.fx).price


def _broker(values: Mapping[str, str]) -> Iterator[_Row]:
    known = {name: value for name, value in values.items() if name in _Row.__slots__ and value}
    needed = {name: values[name] for name in ("sku", "gpu", "gpu_count", "price", "currency")}
    yield _Row(**{**needed, **known})


def _gpuhunt(values: Mapping[str, str]) -> Iterator[_Row]:
    yield _Row(
        sku=values["instance_name"],
        gpu=values["gpu_name"],
        gpu_count=values["gpu_count"] or "0",
        price=values["price"],
        pricing="spot" if values["spot"].lower() in ("true", "1", "yes") else "on_demand",
        region=values["location"],
        gpu_memory_gib=values.get("gpu_memory", ""),
    )


def _skypilot(values: Mapping[str, str]) -> Iterator[_Row]:
    base = _Row(
        sku=values["InstanceType"] or f"{values['AcceleratorCount']}x-{values['AcceleratorName']}",
        gpu=values["AcceleratorName"],
        gpu_count=values["AcceleratorCount"] or "0",
        price=values["Price"],
        region=values["Region"],
        zone=values.get("AvailabilityZone", ""),
    )
    yield base
    # vast's rows say 0.00 for every spot price: unknown, and not worth an offer of its own
    if _is_positive(values.get("SpotPrice", "")):
        yield replace(base, price=values["SpotPrice"], pricing="spot")


_ROWS: Mapping[Dialect, Callable[[Mapping[str, str]], Iterator[_Row]]] = MappingProxyType(
    {"broker": _broker, "gpuhunt": _gpuhunt, "skypilot": _skypilot}
)


def _dialect(header: tuple[str, ...]) -> Dialect | None:
    return next((name for name, needed in _NEEDED.items() if set(needed) <= set(header)), None)


def _no_dialect(header: tuple[str, ...]) -> Finding:
    wanted = "; ".join(f"{name}: {', '.join(columns)}" for name, columns in _NEEDED.items())
    found = ", ".join(header) or "nothing"
    return Finding(1, "header", f"the header has {found}; a card of one of these is read: {wanted}")


def _is_positive(text: str) -> bool:
    try:
        return Decimal(text) > 0
    except InvalidOperation:
        return False


def _number(text: str, column: str) -> Decimal:
    try:
        number = Decimal(text)
    except InvalidOperation:
        raise _Unreadable("number", f"{column} {text!r} is not a number") from None
    if not number.is_finite() or number < 0:
        raise _Unreadable("number", f"{column} {text!r} must be 0 or more")
    return number


def _one_of(text: str, allowed: tuple[str, ...], column: str) -> Any:
    if text not in allowed:
        raise _Unreadable("word", f"{column} {text!r} is not one of {', '.join(allowed)}")
    return text


def _observed(text: str, terms: Terms) -> datetime:
    """A price of a day to come would stand against every newer one until that day."""
    at = _date(text)
    if terms.now is None:
        return at
    if at > terms.now:
        raise _Unreadable("date", f"observed_on {text!r} is to come; a price was observed today at the latest")
    return terms.now if "T" not in text and at.date() == terms.now.date() else at


def _date(text: str) -> datetime:
    try:
        found = (
            datetime.fromisoformat(text)
            if "T" in text
            else datetime.combine(date.fromisoformat(text), datetime.min.time())
        )
    except ValueError:
        raise _Unreadable("date", f"observed_on {text!r} is not a date such as 2026-11-27") from None
    return found if found.tzinfo else found.replace(tzinfo=UTC)
