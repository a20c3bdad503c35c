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
# Units of quantity as FOCUS writes them.
UNITS: Mapping[str, str] = {"MTOKEN": "1000000 Tokens", "GPUH": "GPU-Hours"}


@dataclass(frozen=True, slots=True)
class Subject:
    """What was charged for: everything that all charges of one rental have in common.

    `unit_nano` is the hourly price of the whole machine (0: not known), `list_nano` what the same machine cost on demand when it
    was chosen, where it was rented for another price (0: not known), `rental` our id of it (also the tag that it carries at the
    provider), `started_us` the provider's metering start.
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
    list_nano: int = 0
    started_us: int | None = None
    model: str | None = None
    tags: Mapping[str, str] = field(default_factory=dict)


class Charge(NamedTuple):
    """One row to be. `subject` counts into the table's subjects; amounts are nano-USD, times microseconds UTC.

    `seconds` are billed seconds, None where no time was metered; `quantity_nano` of `unit` is what was metered otherwise.
    `commitment` is what was bought or covered it, `status` Used or Unused. `foreign_nano` of the currency `foreign` is what
    was paid where that is not USD.
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
    quantity_nano: int | None = None
    unit: str = "Hours"
    commitment: str | None = None
    status: str | None = None
    foreign_nano: int = 0
    foreign: str | None = None

    @property
    def priced_nano(self) -> int:
        """What the quantity cost: what is billed, or, under a commitment, what of it is used up."""
        return self.effective_nano if self.status else self.billed_nano

    @property
    def is_metered(self) -> bool:
        return self.seconds is not None or self.quantity_nano is not None


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
    if kind.startswith(("usage.", "commitment.")) or kind in ("correction", "escrow.spend"):
        return "Usage"
    return "Adjustment"


def foreign_of(postings: Sequence[tuple[str, str, int]]) -> tuple[int, str | None]:
    """What an entry spends in a currency other than USD: nano-units and the currency.

    >>> foreign_of([("Assets:Escrow:Akash", "AKT", -7), ("Equity:FX:Liquidity:AKT", "AKT", 7)])
    (7, 'AKT')
    """
    spent = [(unit, -nano) for account, unit, nano in postings if unit != "USD" and account.startswith("Assets:")]
    return (sum(nano for _, nano in spent), spent[0][0]) if spent else (0, None)


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
