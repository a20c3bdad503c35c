"""Matching: which accruals a bill pays for, and why what it charges differs. Pure.

A difference is split into what a longer time costs (at our price), what another price costs (for the billed time), and the
rest; the parts sum to it, to the nano. The largest part names it. What is small and has an innocent reason is booked as
variance; everything else waits in suspense for a named person.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import ROUND_HALF_EVEN, Decimal
from typing import Literal

from ledger.money import cost_of_seconds, in_usd, to_nano
from ledger.reconcile.bill import Bill, BillLine

Code = Literal[
    "exact", "rounding", "minimum", "fx", "tax", "credit",
    "leaked", "unknown_resource", "billed_twice", "wrong_tier", "price_moved", "longer", "shorter", "purchase", "unexplained",
]  # fmt: skip
# Innocent reasons: booked at once. All others wait for a person.
INNOCENT: frozenset[Code] = frozenset({"exact", "rounding", "minimum", "fx", "tax", "credit"})
# The books round to the nano, bills to cents or to their own digits: half a cent a line is nobody's mistake.
ROUNDING_NANO_PER_LINE = 5_000_000
_FX_PER_MILLE = 50


@dataclass(frozen=True, slots=True)
class Paid:
    """What of a rental's accruals invoices have paid for: nano-USD for `seconds`."""

    nano: int
    seconds: int


@dataclass(frozen=True, slots=True)
class Accrued:
    """What the books say of one rental in the bill's month: nano-USD for `seconds`, at `price_nano_hour`.

    `tiers` are the prices of the same machine under other pricings (on_demand, spot …). `ended_us` None: it runs.
    `is_rest`: an earlier invoice of the month paid for a part, this is what is left.
    """

    rental: str
    project: str | None
    nano: int
    seconds: int
    price_nano_hour: int
    granularity_s: int = 1
    minimum_s: int = 0
    ended_us: int | None = None
    tiers: Mapping[str, int] | None = None
    is_rest: bool = False


@dataclass(frozen=True, slots=True)
class Variance:
    """What a bill charges beyond (negative: below) the accrual of `subject`, a rental or a resource that is not ours.

    `time_nano` + `price_nano` + `rest_nano` = `nano`.
    """

    subject: str
    project: str | None
    code: Code
    billed_nano: int
    accrued_nano: int
    time_nano: int
    price_nano: int
    rest_nano: int
    explanation: str

    @property
    def nano(self) -> int:
        return self.billed_nano - self.accrued_nano

    @property
    def is_innocent(self) -> bool:
        return self.code in INNOCENT


@dataclass(frozen=True, slots=True)
class Reconciliation:
    """`variances` has one entry for each thing on the bill, exact ones too; `not_billed` are accruals that no line pays for;
    `paid` is what was matched, by rental.

    billed = accrued (of what was matched) + the sum of the variances, always.
    """

    billed_nano: int
    accrued_nano: int
    variances: tuple[Variance, ...]
    matched: tuple[str, ...]
    not_billed: tuple[Accrued, ...]
    paid: Mapping[str, Paid] = field(default_factory=dict)


def reconcile(
    bill: Bill,
    accrued: Mapping[str, Accrued],
    *,
    names: Mapping[str, str] | None = None,
    rate: Decimal = Decimal(1),
    paid_before: Mapping[str, Paid] | None = None,
) -> Reconciliation:
    """Match `bill` to what was accrued, by rental. `names` leads from a provider's ids to rentals, `rate` is USD for one of the
    bill's currency, `paid_before` is what earlier invoices of the month paid for, by rental: a machine that went on is matched
    to what was accrued since.
    """
    before = paid_before or {}
    left = {rental: _left(each, before.get(rental)) for rental, each in accrued.items()}
    aliases = {**{rental: rental for rental in accrued}, **(names or {})}
    groups: dict[tuple[str, str], list[BillLine]] = defaultdict(list)
    for line in bill.lines:
        groups[_subject(line, aliases)].append(line)
    amounts = dict(zip(groups, _nanos(list(groups.values()), rate), strict=True))
    found = [
        _variance(kind, subject, lines, amounts[kind, subject], left.get(subject), bill, rate)
        for (kind, subject), lines in groups.items()
    ]
    paid = tuple(sorted(each.subject for each in found if each.subject in accrued and each.accrued_nano))
    return Reconciliation(
        billed_nano=sum(amounts.values()),
        accrued_nano=sum(each.accrued_nano for each in found),
        variances=tuple(found),
        matched=paid,
        not_billed=tuple(
            each for key, each in sorted(left.items()) if key not in paid and (each.nano or key not in before)
        ),
        paid={rental: Paid(left[rental].nano, left[rental].seconds) for rental in paid},
    )


def _left(whole: Accrued, paid: Paid | None) -> Accrued:
    """What of an accrual no earlier invoice paid for; negative when the books went down since."""
    if paid is None:
        return whole
    return replace(whole, nano=whole.nano - paid.nano, seconds=whole.seconds - paid.seconds, is_rest=True)


def _subject(line: BillLine, aliases: Mapping[str, str]) -> tuple[str, str]:
    """Taxes, credits and purchases stand alone; usage is of a rental of ours, or of the first thing that the line names."""
    if line.kind != "usage":
        return line.kind, f"{line.kind} {line.description or f'of line {line.number}'}"[:200]
    ours = next((aliases[name] for name in line.names if name in aliases), None)
    return "usage", ours or (line.names[0] if line.names else f"line {line.number}")


def _nanos(groups: Sequence[Sequence[BillLine]], rate: Decimal) -> list[int]:
    """Each group's amount in nano-USD, rounded once; what rounding leaves of the whole goes to the largest group."""
    exact = [sum((line.amount for line in lines), Decimal(0)) * rate for lines in groups]
    found = [to_nano(amount) for amount in exact]
    left = to_nano(sum(exact, Decimal(0))) - sum(found)
    if left and found:
        found[max(range(len(found)), key=lambda at: abs(found[at]))] += left
    return found


def _variance(
    kind: str, subject: str, lines: Sequence[BillLine], billed: int, ours: Accrued | None, bill: Bill, rate: Decimal
) -> Variance:  # fmt: skip
    if kind != "usage":
        code: Code = (
            "tax" if kind == "tax" else "credit" if kind in ("credit", "adjustment") and billed < 0 else "purchase"
        )
        code = "unexplained" if kind == "adjustment" and billed >= 0 else code
        return _alone(
            subject, None, code, billed, f"{kind} of {in_usd(billed)}: {lines[0].description or 'no description'}"
        )
    if ours is None:
        is_tagged = any(name.startswith("rental_") for line in lines for name in line.names)
        code = "leaked" if is_tagged else "unknown_resource"
        words = "carries our tag, and the books know no such rental" if is_tagged else "is no machine of ours"
        return _alone(subject, None, code, billed, f"{subject} {words}: {in_usd(billed)}")
    if ours.is_rest and (ours.nano == 0 or ours.nano < 0 < billed):
        return _alone(subject, ours.project, "billed_twice", billed, f"{subject} is on an earlier invoice of the month")
    return _of_rental(lines, billed, ours, bill, rate)


def _alone(subject: str, project: str | None, code: Code, billed: int, words: str) -> Variance:
    return Variance(subject, project, code, billed, 0, 0, 0, billed, words)


def _of_rental(lines: Sequence[BillLine], billed: int, ours: Accrued, bill: Bill, rate: Decimal) -> Variance:
    seconds = _seconds(lines)
    price = _price(lines, rate)
    time_nano = 0 if seconds is None else _cost(ours.price_nano_hour, seconds - ours.seconds)
    price_nano = 0
    if price is not None and price != ours.price_nano_hour:
        price_nano = _cost(price - ours.price_nano_hour, seconds if seconds is not None else ours.seconds)
    difference = billed - ours.nano
    rest = difference - time_nano - price_nano
    code, words = _explained(lines, difference, time_nano, price_nano, rest, seconds, price, ours, bill)
    return Variance(ours.rental, ours.project, code, billed, ours.nano, time_nano, price_nano, rest, words)


def _explained(
    lines: Sequence[BillLine], difference: int, time_nano: int, price_nano: int, rest: int, seconds: int | None,
    price: int | None, ours: Accrued, bill: Bill,
) -> tuple[Code, str]:  # fmt: skip
    if difference == 0:
        return "exact", "as accrued"
    slack = ROUNDING_NANO_PER_LINE * len(lines)
    if abs(difference) <= slack and abs(time_nano) <= slack and abs(price_nano) <= slack:
        return "rounding", f"{in_usd(difference)} over {len(lines)} lines is rounding"
    if bill.currency != "USD" and abs(time_nano) <= slack and abs(difference) * 1000 <= abs(ours.nano) * _FX_PER_MILLE:
        return "fx", f"{bill.currency} was at another rate when it was used: {in_usd(difference)}"
    if abs(time_nano) >= max(abs(price_nano), abs(rest)) and seconds is not None:
        return _of_time(lines, seconds, ours, time_nano)
    if abs(price_nano) >= abs(rest) and price is not None:
        return _of_price(price, ours, price_nano)
    return "unexplained", f"{in_usd(difference)} that neither time nor price explain"


def _of_time(lines: Sequence[BillLine], seconds: int, ours: Accrued, nano: int) -> tuple[Code, str]:
    extra = seconds - ours.seconds
    if extra < 0:
        return "shorter", f"{-extra} s less than accrued were billed: {in_usd(nano)}"
    least = max(ours.minimum_s, 3600 if ours.granularity_s >= 3600 else 60)
    # A minimum is charged once: on a second invoice it may be the first one's time again.
    is_minimum = seconds <= least and not ours.is_rest
    if is_minimum or (extra < ours.granularity_s and seconds % max(1, ours.granularity_s) == 0):
        return "minimum", f"{seconds} s were billed for {ours.seconds} s used: the provider's minimum or increment"
    last = max((line.end_us for line in lines if line.end_us is not None), default=None)
    if ours.ended_us is not None and last is not None and last > ours.ended_us:
        after = (last - ours.ended_us) // 1_000_000
        return "leaked", f"billed for {after} s after its end was confirmed: {in_usd(nano)}"
    return "longer", f"{extra} s more than accrued were billed: {in_usd(nano)}"


def _of_price(price: int, ours: Accrued, nano: int) -> tuple[Code, str]:
    tier = next((name for name, each in (ours.tiers or {}).items() if _near(each, price)), None)
    told = f"{in_usd(price)}/h instead of {in_usd(ours.price_nano_hour)}/h: {in_usd(nano)}"
    if tier is not None:
        return "wrong_tier", f"billed as {tier} at {told}"
    return "price_moved", f"billed at {told}"


def _near(left: int, right: int) -> bool:
    return abs(left - right) * 1000 <= max(left, right)


def _seconds(lines: Sequence[BillLine]) -> int | None:
    if any(line.hours is None for line in lines):
        return None
    whole = sum((line.hours or Decimal(0) for line in lines), Decimal(0)) * 3600
    return int(whole.to_integral_value(rounding=ROUND_HALF_EVEN))


def _price(lines: Sequence[BillLine], rate: Decimal) -> int | None:
    """Nano-USD per hour: the lines' own price where they agree, else their average."""
    told = {line.unit_price for line in lines}
    if len(told) == 1 and (only := told.pop()) is not None:
        return to_nano(only * rate)
    hours = sum((line.hours or Decimal(0) for line in lines), Decimal(0))
    if not hours or any(line.hours is None for line in lines):
        return None
    return to_nano(sum((line.amount for line in lines), Decimal(0)) * rate / hours)


def _cost(price_nano_hour: int, seconds: int) -> int:
    """Of signed price and time."""
    cost = cost_of_seconds(abs(price_nano_hour), abs(seconds))
    return cost if (price_nano_hour < 0) == (seconds < 0) else -cost
