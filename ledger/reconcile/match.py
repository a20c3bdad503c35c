"""Matching: which accruals a bill pays for, and why what it charges differs. Pure.

A difference is split into what a longer time costs (at our price), what another price costs (for the billed time), and the
rest; the parts sum to it, to the nano. The largest part names it. What is small and has an innocent reason is booked as
variance; everything else waits in suspense for a named person. Where tokens are bought their number stands for the time, and a
model of the endpoint for the machine: such bills name models.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import ROUND_HALF_EVEN, Decimal
from typing import Literal

from ledger.focus.table import period_bounds
from ledger.money import cost_of_seconds, div_half_even, in_usd, to_nano
from ledger.reconcile.bill import Bill, BillLine

Code = Literal[
    "exact", "rounding", "minimum", "fx", "tax", "credit",
    "leaked", "unknown_resource", "billed_twice", "wrong_tier", "price_moved", "longer", "shorter", "more_tokens",
    "fewer_tokens", "not_refunded", "purchase", "unexplained",
]  # fmt: skip
# Innocent reasons: booked at once. All others wait for a person.
INNOCENT: frozenset[Code] = frozenset({"exact", "rounding", "minimum", "fx", "tax", "credit"})
# The books round to the nano, bills to cents or to their own digits: half a cent a line is nobody's mistake.
ROUNDING_NANO_PER_LINE = 5_000_000
_FX_PER_MILLE = 50
_NEAR_PRICE = 2  # a charge of half of what a free hour would cost is no disk
_MILLION = 1_000_000
CARD_NOW = "the card's price now"  # the tier of tokens that is no other tier, but another day


@dataclass(frozen=True, slots=True)
class Paid:
    """What of a rental's (or model's) accruals invoices have paid for: nano-USD for `quantity` seconds (or tokens)."""

    nano: int
    quantity: int


@dataclass(frozen=True, slots=True)
class Accrued:
    """What the books say of `subject` in the bill's month: nano-USD for `quantity` of `unit` at `price_nano`.

    A subject is a rental by its id (seconds, at a price an hour), or an endpoint's model by the endpoint's name (tokens, at a
    price a million: what a million of them did cost, whatever their classes). `tiers` are the prices of the same under other
    terms (on_demand, spot …; of tokens "batch", "without its cache", "the card's price now"). `ended_us` None: it runs.
    `is_rest`: an earlier invoice of the month paid for a part, this is what is left. `rentals` are those that bought a model.
    `refund_nano` is what the provider does not charge by its own terms: it is not in `nano`.
    """

    subject: str
    project: str | None
    nano: int
    quantity: int
    price_nano: int
    granularity_s: int = 1
    minimum_s: int = 0
    ended_us: int | None = None
    tiers: Mapping[str, int] | None = None
    is_rest: bool = False
    unit: Literal["seconds", "tokens"] = "seconds"
    rentals: tuple[str, ...] = ()
    refund_nano: int = 0


@dataclass(frozen=True, slots=True)
class Variance:
    """What a bill charges beyond (negative: below) the accrual of `subject`: a rental, an endpoint's model, or what is not ours.

    `time_nano` (of tokens: of their number) + `price_nano` + `rest_nano` = `nano`. `rental` is the subject where it is one's.
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
    rental: str | None = None

    @property
    def nano(self) -> int:
        return self.billed_nano - self.accrued_nano

    @property
    def is_innocent(self) -> bool:
        return self.code in INNOCENT


@dataclass(frozen=True, slots=True)
class Reconciliation:
    """`variances` has one entry for each thing on the bill, exact ones too; `not_billed` are accruals that no line pays for;
    `matched` are the rentals of what a line pays for, `paid` is what was paid, by subject; `refunds` are those that the bill
    answers, by rental: it charges for them or could have, so that what they are for is owed no longer.

    billed = accrued (of what was matched) + the sum of the variances, always.
    """

    billed_nano: int
    accrued_nano: int
    variances: tuple[Variance, ...]
    matched: tuple[str, ...]
    not_billed: tuple[Accrued, ...]
    paid: Mapping[str, Paid] = field(default_factory=dict)
    refunds: Mapping[str, int] = field(default_factory=dict)


def reconcile(
    bill: Bill,
    accrued: Mapping[str, Accrued],
    *,
    names: Mapping[str, str] | None = None,
    rate: Decimal = Decimal(1),
    paid_before: Mapping[str, Paid] | None = None,
) -> Reconciliation:
    """Match `bill` to what was accrued, by subject.

    `names` leads from a provider's ids to subjects (those of an endpoint's models in small letters), `rate` is USD for one of the
    bill's currency, `paid_before` is what earlier invoices of the month paid for, by subject: a machine that went on is matched
    to what was accrued since.
    """
    before = paid_before or {}
    left = {subject: _left(each, before.get(subject)) for subject, each in accrued.items()}
    aliases = {**{subject: subject for subject in accrued}, **(names or {})}
    groups: dict[tuple[str, str], list[BillLine]] = defaultdict(list)
    for line in bill.lines:
        groups[_subject(line, aliases)].append(line)
    amounts = dict(zip(groups, _nanos(list(groups.values()), rate), strict=True))
    found = [
        _variance(kind, subject, lines, amounts[kind, subject], left.get(subject), bill, rate)
        for (kind, subject), lines in groups.items()
    ]
    paid = tuple(sorted(each.subject for each in found if each.subject in accrued and each.accrued_nano))
    refunds = _answered(left, {subject for _, subject in groups}, bill)
    return Reconciliation(
        billed_nano=sum(amounts.values()),
        accrued_nano=sum(each.accrued_nano for each in found),
        variances=tuple(found),
        matched=tuple(sorted(rental for each in paid for rental in accrued[each].rentals or (each,))),
        not_billed=tuple(
            each
            for key, each in sorted(left.items())
            if key not in paid and key not in refunds and (each.nano or each.refund_nano or key not in before)
        ),
        paid={subject: Paid(left[subject].nano, left[subject].quantity) for subject in paid},
        refunds=refunds,
    )


def _answered(left: Mapping[str, Accrued], on_bill: Collection[str], bill: Bill) -> dict[str, int]:
    """The refunds that the bill answers: of what it names, and of what it does not name though it goes on beyond its end (of a
    bill whose usage has no times it is the whole month; one of tax or support alone says nothing of machines)."""
    usage = [line for line in bill.lines if line.kind == "usage"]
    if not usage:
        return {}
    last = max((line.end_us for line in usage if line.end_us is not None), default=None)
    month_us = period_bounds(bill.period)[1] * 1_000_000  # one that ends in the next month is in this one up to its end
    return {
        subject: each.refund_nano
        for subject, each in left.items()
        if each.refund_nano and (subject in on_bill or last is None or min(each.ended_us or last + 1, month_us) <= last)
    }


def _left(whole: Accrued, paid: Paid | None) -> Accrued:
    """What of an accrual no earlier invoice paid for; negative when the books went down since."""
    if paid is None:
        return whole
    return replace(whole, nano=whole.nano - paid.nano, quantity=whole.quantity - paid.quantity, is_rest=True)


def _subject(line: BillLine, aliases: Mapping[str, str]) -> tuple[str, str]:
    """Taxes, credits and purchases stand alone; usage is of a rental or a model of ours, or of the first thing that the line
    names. A model may be named in other letters, and in the place of a SKU."""
    if line.kind != "usage":
        return line.kind, f"{line.kind} {line.description or f'of line {line.number}'}"[:200]
    told = (*line.names, *(name.lower() for name in (*line.names, line.sku or "")))
    ours = next((aliases[name] for name in told if name in aliases), None)
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
    return _of_ours(lines, billed, ours, bill, rate)


def _alone(subject: str, project: str | None, code: Code, billed: int, words: str) -> Variance:
    return Variance(subject, project, code, billed, 0, 0, 0, billed, words)


def _of_ours(lines: Sequence[BillLine], billed: int, ours: Accrued, bill: Bill, rate: Decimal) -> Variance:
    if ours.refund_nano:
        return _of_free(lines, billed, ours, rate)
    quantity = _quantity(lines, ours)
    price = _price(lines, ours, rate)
    time_nano = 0 if quantity is None else _cost(ours, ours.price_nano, quantity - ours.quantity)
    price_nano = 0
    if price is not None and price != ours.price_nano:
        price_nano = _cost(ours, price - ours.price_nano, quantity if quantity is not None else ours.quantity)
    difference = billed - ours.nano
    rest = difference - time_nano - price_nano
    code, words = _explained(lines, difference, time_nano, price_nano, rest, quantity, price, ours, bill)
    rental = None if ours.rentals else ours.subject
    return Variance(ours.subject, ours.project, code, billed, ours.nano, time_nano, price_nano, rest, words, rental)


def _of_free(lines: Sequence[BillLine], billed: int, ours: Accrued, rate: Decimal) -> Variance:
    """Of a machine whose time the provider does not charge by its own terms: its disk and what it sent are charged all the same.

    Lines of hours say what is asked for its time. Where no line has hours, only what comes near to its price can be that.
    """
    difference = billed - ours.nano
    timed = [line for line in lines if line.hours is not None]
    charged = to_nano(sum((line.amount for line in timed or lines), Decimal(0)) * rate)
    code: Code = "exact"
    words = "as accrued"
    if charged > 0 if timed else charged * _NEAR_PRICE >= abs(ours.refund_nano):
        code = "not_refunded"
        words = f"interrupted by the provider so early that its own terms charge nothing; it charges {in_usd(charged)}"
    elif difference:
        is_small = abs(difference) <= ROUNDING_NANO_PER_LINE * len(lines)
        code = "rounding" if is_small else "unexplained"
        words = f"{in_usd(difference)} besides its time, which is free (disk, network)"
    return Variance(ours.subject, ours.project, code, billed, ours.nano, 0, 0, difference, words, ours.subject)


def _explained(
    lines: Sequence[BillLine], difference: int, time_nano: int, price_nano: int, rest: int, quantity: int | None,
    price: int | None, ours: Accrued, bill: Bill,
) -> tuple[Code, str]:  # fmt: skip
    if difference == 0:
        return "exact", "as accrued"
    slack = ROUNDING_NANO_PER_LINE * len(lines)
    if abs(difference) <= slack and abs(time_nano) <= slack and abs(price_nano) <= slack:
        return "rounding", f"{in_usd(difference)} over {len(lines)} lines is rounding"
    if bill.currency != "USD" and abs(time_nano) <= slack and abs(difference) * 1000 <= abs(ours.nano) * _FX_PER_MILLE:
        return "fx", f"{bill.currency} was at another rate when it was used: {in_usd(difference)}"
    return _suspected(lines, difference, time_nano, price_nano, rest, quantity, price, ours)


def _suspected(
    lines: Sequence[BillLine], difference: int, time_nano: int, price_nano: int, rest: int, quantity: int | None,
    price: int | None, ours: Accrued,
) -> tuple[Code, str]:  # fmt: skip
    """What is not innocent, by its largest part (or, of time, innocent for a reason of its own)."""
    if abs(time_nano) >= max(abs(price_nano), abs(rest)) and quantity is not None:
        return (_of_tokens if ours.unit == "tokens" else _of_time)(lines, quantity, ours, time_nano)
    if abs(price_nano) >= abs(rest) and price is not None:
        return _of_price(price, ours, price_nano)
    if ours.unit == "tokens" and quantity is None:
        return _of_amount(ours, difference)
    return "unexplained", f"{in_usd(difference)} that neither time nor price explain"


def _of_tokens(lines: Sequence[BillLine], tokens: int, ours: Accrued, nano: int) -> tuple[Code, str]:
    extra = tokens - ours.quantity
    if extra < 0:
        return "fewer_tokens", f"{-extra} tokens less than were booked were billed: {in_usd(nano)}"
    return "more_tokens", (
        f"{extra} tokens more than were booked were billed: {in_usd(nano)}; requests that were cut off, or others who use the key"
    )


def _of_amount(ours: Accrued, difference: int) -> tuple[Code, str]:
    """The bill counts no tokens: only a price that we know of can say why it asks for so much."""
    billed = ours.nano + difference
    for price in (ours.tiers or {}).values():
        if _near(_cost(ours, price, ours.quantity), billed):
            return _of_price(price, ours, difference)
    return "unexplained", f"{in_usd(difference)} that no price we know of explains; the bill counts no tokens"


def _of_time(lines: Sequence[BillLine], seconds: int, ours: Accrued, nano: int) -> tuple[Code, str]:
    extra = seconds - ours.quantity
    if extra < 0:
        return "shorter", f"{-extra} s less than accrued were billed: {in_usd(nano)}"
    least = max(ours.minimum_s, 3600 if ours.granularity_s >= 3600 else 60)
    # A minimum is charged once: on a second invoice it may be the first one's time again.
    is_minimum = seconds <= least and not ours.is_rest
    if is_minimum or (extra < ours.granularity_s and seconds % max(1, ours.granularity_s) == 0):
        return "minimum", f"{seconds} s were billed for {ours.quantity} s used: the provider's minimum or increment"
    last = max((line.end_us for line in lines if line.end_us is not None), default=None)
    if ours.ended_us is not None and last is not None and last > ours.ended_us:
        after = (last - ours.ended_us) // 1_000_000
        return "leaked", f"billed for {after} s after its end was confirmed: {in_usd(nano)}"
    return "longer", f"{extra} s more than accrued were billed: {in_usd(nano)}"


def _of_price(price: int, ours: Accrued, nano: int) -> tuple[Code, str]:
    tier = next((name for name, each in (ours.tiers or {}).items() if _near(each, price)), None)
    per = "a million tokens" if ours.unit == "tokens" else "h"
    told = f"{in_usd(price)}/{per} instead of {in_usd(ours.price_nano)}/{per}: {in_usd(nano)}"
    if tier is not None and tier != CARD_NOW:
        return "wrong_tier", f"billed as {tier} at {told}"
    return "price_moved", f"billed at {CARD_NOW if tier else ''}{', ' if tier else ''}{told}"


def _near(left: int, right: int) -> bool:
    return abs(left - right) * 1000 <= max(left, right)


def _quantity(lines: Sequence[BillLine], ours: Accrued) -> int | None:
    """Seconds or tokens of all lines; None where one does not say."""
    told = [line.tokens if ours.unit == "tokens" else line.hours for line in lines]
    if any(each is None for each in told):
        return None
    whole = sum((each or Decimal(0) for each in told), Decimal(0)) * (1 if ours.unit == "tokens" else 3600)
    return int(whole.to_integral_value(rounding=ROUND_HALF_EVEN))


def _price(lines: Sequence[BillLine], ours: Accrued, rate: Decimal) -> int | None:
    """Nano-USD per hour or million tokens: the lines' own price where they agree, else their average (of tokens always, for
    each class of them has its own)."""
    told = {line.unit_price for line in lines}
    if ours.unit == "seconds" and len(told) == 1 and (only := told.pop()) is not None:
        return to_nano(only * rate)
    quantities = [line.tokens if ours.unit == "tokens" else line.hours for line in lines]
    whole = sum((each or Decimal(0) for each in quantities), Decimal(0))
    if not whole or any(each is None for each in quantities):
        return None
    amount = sum((line.amount for line in lines), Decimal(0)) * rate
    return to_nano(amount * _MILLION / whole if ours.unit == "tokens" else amount / whole)


def _cost(ours: Accrued, price_nano: int, quantity: int) -> int:
    """Of signed price and quantity."""
    if ours.unit == "tokens":
        cost = div_half_even(abs(price_nano) * abs(quantity), _MILLION)
    else:
        cost = cost_of_seconds(abs(price_nano), abs(quantity))
    return cost if (price_nano < 0) == (quantity < 0) else -cost
