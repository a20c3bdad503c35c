"""What a provider asks, as US dollars per whole instance-hour: one place for units, scales, currencies and their refusal.

Providers quote per GPU or per instance; per second, minute, hour, day, month, chain block or whole booking; in dollars,
cents, millionths, euros and coins; with disk, network and platform fees apart. `hourly` turns all that into one Decimal
with its components and keeps the raw words. Nothing is guessed: no currency, no number, nothing positive, no rate of
the day are a `problem`, and the price is then None.

    hourly([Part("gpu", "2.49", per="hour", of="gpu")], currency="USD", gpus=8)
    hourly([Part("gpu", 240, scale="cents")], currency="USD", gpus=1)
    hourly([Part("gpu", "4000", per="block", scale="micro", block_s=6)], currency="USD", gpus=1)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from decimal import Decimal, InvalidOperation, localcontext
from types import MappingProxyType
from typing import Literal

Per = Literal["second", "minute", "hour", "day", "month", "block", "booking"]
Scale = Literal["unit", "cents", "milli", "micro", "nano"]
# A month of compute is 730 hours, as AWS and Azure count it.
_HOURS: Mapping[str, Decimal] = MappingProxyType({"hour": Decimal(1), "day": Decimal(24), "month": Decimal(730)})
_PER_HOUR: Mapping[str, Decimal] = MappingProxyType({"second": Decimal(3600), "minute": Decimal(60)})
_SCALE: Mapping[str, Decimal] = MappingProxyType(
    {
        "unit": Decimal(1),
        "cents": Decimal("1e-2"),
        "milli": Decimal("1e-3"),
        "micro": Decimal("1e-6"),
        "nano": Decimal("1e-9"),
    }
)
# A price of nano-dollars is the ledger's smallest; more digits than this come of divisions, not of providers.
_PLACES = Decimal("1e-12")


@dataclass(frozen=True, slots=True)
class Part:
    """One thing that is paid for: `amount` as the provider writes it, and what it is for.

    `block_s` is the seconds of a chain's block; `booking_h` the hours that a booking's total pays for. `optional` parts may
    be absent or 0 (a free disk); the sum must be positive all the same.
    """

    name: str
    amount: Decimal | str | int | float | None
    per: Per = "hour"
    of: Literal["instance", "gpu"] = "instance"
    scale: Scale = "unit"
    block_s: Decimal | int | None = None
    booking_h: Decimal | int | None = None
    optional: bool = False


@dataclass(frozen=True, slots=True)
class FxRate:
    """What one unit of `currency` was worth in US dollars on `dated`, by `source`. Injected; the ledger keeps them.

    `too_old` says why nothing is to be counted by it any more: a price in that currency is then listed and not chosen.
    """

    currency: str
    usd: Decimal
    dated: date
    source: str
    too_old: str | None = None


@dataclass(frozen=True, slots=True)
class Hourly:
    """`price` in USD per whole instance-hour, the sum of `components`; None with a `problem`.

    `raw` is what the provider said, for people and for the ledger: amounts by part with their units, the currency, and the
    rate with its date and source when there was one. Fields of an offer: `price`, `currency`, `components`, `raw`.
    """

    price: Decimal | None
    components: Mapping[str, Decimal] = field(default_factory=dict)
    raw: Mapping[str, str] = field(default_factory=dict)
    problem: str | None = None
    currency: str = "USD"


def hourly(
    parts: Sequence[Part], *, currency: str | None, gpus: int = 1, fx: Mapping[str, FxRate] | None = None
) -> Hourly:
    """The sum of `parts` per whole instance-hour of `gpus` devices. Never raises: what cannot be believed is a problem.

    `fx` is by currency code (`EUR`, `BTC`); without a rate a foreign price is unknown, not one to one.

    >>> hourly([Part("gpu", "0.7875")], currency="EUR").problem
    'price in EUR, and no rate of EUR to USD is known; give one (`broker ledger rates add`)'
    """
    raw = {part.name: _words(part) for part in parts} | {"currency": currency or "-"}
    code = (currency or "").strip().upper()
    rate = _dollars(code, fx or {})
    if isinstance(rate, str):
        return Hourly(None, raw=raw, problem=rate)
    if rate.source:
        raw["fx"] = f"1 {code} = {rate.usd} USD on {rate.dated.isoformat()} ({rate.source})"
    components: dict[str, Decimal] = {}
    for part in parts:
        amount = _amount(part, gpus)
        if isinstance(amount, str):
            return Hourly(None, raw=raw, problem=amount)
        if amount is not None:
            with localcontext(prec=50):
                components[part.name] = components.get(part.name, Decimal(0)) + _rounded(amount * rate.usd)
    total = sum(components.values(), Decimal(0))
    if total <= 0:
        return Hourly(None, raw=raw, problem=f"price {total} is unknown, not free")
    return Hourly(total, components, raw)


_ITSELF = FxRate("USD", Decimal(1), date.min, "")


def _dollars(code: str, fx: Mapping[str, FxRate]) -> FxRate | str:
    """What one unit of `code` is counted as; words where nothing may be counted."""
    if not code:
        return "price without a currency is unknown"
    if code in ("USD", "USDC", "USDT", "UACT"):
        return _ITSELF
    known = fx.get(code)
    if known is None:
        return f"price in {code}, and no rate of {code} to USD is known; give one (`broker ledger rates add`)"
    if not known.usd.is_finite() or known.usd <= 0:
        return f"the rate of {code} to USD is {known.usd} ({known.source}, {known.dated})"
    return known if known.too_old is None else f"price in {code}, and {known.too_old}"


def _amount(part: Part, gpus: int) -> Decimal | str | None:
    """In the provider's currency per instance-hour; None for an optional part that is absent; words for a bad one."""
    amount = _number(part)
    if not isinstance(amount, Decimal):
        return amount
    if amount < 0 or (amount == 0 and not part.optional):
        return f"{part.name} price {amount} is unknown, not free"
    if part.of == "gpu" and gpus < 1:
        return f"{part.name} is priced per GPU and the offer has {gpus} of them"
    with localcontext(prec=50):
        times = _per_hour(part)
        if isinstance(times, str):
            return times
        return amount * _SCALE[part.scale] * times * (gpus if part.of == "gpu" else 1)


def _number(part: Part) -> Decimal | str | None:
    if part.amount is None or part.amount == "":
        return None if part.optional else f"{part.name} has no price; that is unknown, not free"
    try:
        amount = Decimal(str(part.amount).strip())
    except InvalidOperation:
        return f"{part.name} {part.amount!r} is not a number"
    return amount if amount.is_finite() else f"{part.name} {part.amount!r} is not a number"


def _per_hour(part: Part) -> Decimal | str:
    if part.per in _PER_HOUR:
        return _PER_HOUR[part.per]
    if part.per in _HOURS:
        return 1 / _HOURS[part.per]
    seconds = part.block_s if part.per == "block" else part.booking_h
    if seconds is None or seconds <= 0:
        missing = "block_s" if part.per == "block" else "booking_h"
        return f"{part.name} is priced per {part.per}, and how long one lasts is not said ({missing})"
    return Decimal(3600) / Decimal(seconds) if part.per == "block" else 1 / Decimal(seconds)


def _rounded(amount: Decimal) -> Decimal:
    """Without the tail of a division; exact where the provider was."""
    exponent = amount.as_tuple().exponent
    return amount.quantize(_PLACES) if isinstance(exponent, int) and exponent < -12 else amount


def _words(part: Part) -> str:
    scale = "" if part.scale == "unit" else f" {part.scale}"
    length = f" of {part.block_s} s" if part.block_s else (f" of {part.booking_h} h" if part.booking_h else "")
    return f"{part.amount}{scale} per {part.per}{length} and {part.of}"
