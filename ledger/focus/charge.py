"""The charge: what an entry of the books means to FOCUS. Pure; a projection of the entry's postings and of its key.

`billed` is what the provider charges (it moves what is owed or prepaid), `effective` what was used up (it moves
expenses). They differ for commitments alone: bought once, used up hour by hour.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

Category = Literal["Usage", "Purchase", "Credit", "Adjustment"]
Pricing = Literal["on_demand", "spot", "bid", "reserved", "token"]

_OWED = (
    "Liabilities:Accrued:",
    "Liabilities:Payable:",
    "Assets:Prepaid:",
    "Assets:Receivable:",
    "Assets:Deposit:",
    "Assets:Bank:",
    "Assets:Wallet:",
    # what a virtual currency cost when it was bought; the other side of an escrow's spending
    "Equity:FX:Liquidity:",
    "Income:FX:",
)
_USED = ("Expenses:", "Income:Refunds:")


@dataclass(frozen=True, slots=True)
class Subject:
    """What was charged for: everything that all charges of one rental have in common.

    `unit_nano` is the hourly price of the whole machine (0: not known), `rental` our id of it (also the tag that it carries
    at the provider), `started_us` the provider's metering start.
    """

    market: str
    project: str | None
    rental: str | None
    offer_key: str | None
    pricing: Pricing = "on_demand"
    region: str | None = None
    zone: str | None = None
    sku: str | None = None
    launch: str = "vm"
    host: str | None = None
    accelerator: str | None = None
    accelerators: int = 0
    memory_mib: int = 0
    unit_nano: int = 0
    started_us: int | None = None
    model: str | None = None
    tags: Mapping[str, str] = field(default_factory=dict)


class Charge(NamedTuple):
    """One row to be. `subject` counts into the table's subjects; amounts are nano-USD, times microseconds UTC.

    `seconds` are billed seconds, None where nothing was metered (fees, credits, corrections by people).
    """

    entry_id: str
    kind: str
    category: Category
    is_correction: bool
    subject: int
    billed_nano: int
    effective_nano: int
    seconds: int | None
    start_us: int
    end_us: int
    batch: str | None
    invoice: str | None


class Amounts(NamedTuple):
    """Nano-USD: what the provider charges, and what was used up."""

    billed: int
    effective: int


def amounts(postings: Sequence[tuple[str, str, int]]) -> Amounts:
    """Of an entry's (account, unit, nano) lines in USD.

    >>> amounts([("Expenses:Compute:Spot:Aws", "USD", 5), ("Liabilities:Accrued:Aws", "USD", -5)])
    Amounts(billed=5, effective=5)
    >>> amounts([("Assets:Commitments:C1", "USD", 9), ("Liabilities:Payable:Aws", "USD", -9)])
    Amounts(billed=9, effective=0)
    >>> amounts([("Liabilities:Accrued:Aws", "USD", 9), ("Liabilities:Payable:Aws", "USD", -9)])
    Amounts(billed=0, effective=0)
    """
    billed = effective = 0
    for account, unit, nano in postings:
        if unit != "USD":
            continue
        if account.startswith(_OWED):
            billed -= nano
        elif account.startswith(_USED):
            effective += nano
    return Amounts(billed, effective)


def category_of(kind: str) -> Category:
    """The ChargeCategory of an event's kind. A credit is never netted into usage rows.

    >>> category_of("usage.accrue"), category_of("refund.expected"), category_of("invoice.match")
    ('Usage', 'Credit', 'Adjustment')
    """
    if kind == "commitment.buy":
        return "Purchase"
    if kind.startswith(("refund.", "credit.")):
        return "Credit"
    if kind.startswith(("usage.", "commitment.")) or kind == "correction":
        return "Usage"
    return "Adjustment"


def metered(key: str, rental: str | None) -> tuple[int, int] | None:
    """The interval of a meter entry, in seconds since the rental's start, out of its key; None for other entries.

    An interval that goes backwards is a final reading below what was booked.

    >>> metered("accrue:r1:2:60-120:33", "r1"), metered("accrue:r1:3:120-90:25:final", "r1"), metered("refund:1", "r1")
    ((60, 120), (120, 90), None)
    """
    prefix = f"accrue:{rental}:"
    if rental is None or not key.startswith(prefix):
        return None
    interval = key[len(prefix) :].split(":")[1]
    begun, _, until = interval.partition("-")
    return int(begun), int(until)
