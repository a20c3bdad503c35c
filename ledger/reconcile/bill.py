"""The bill: a provider's invoice as lines that can be matched, whatever it looked like as a file."""

from __future__ import annotations

from dataclasses import dataclass, field
from decimal import Decimal
from typing import Literal

LineKind = Literal["usage", "purchase", "tax", "credit", "adjustment"]


@dataclass(frozen=True, slots=True)
class BillLine:
    """One line. `names` are all ids that it gives for what was used (resource ids, values of tags): one of them may be ours.

    `amount` is in the bill's currency. `hours`, `unit_price` (per hour) and `tokens` are None where the line does not say.
    Times are microseconds UTC, start inclusive, end exclusive.
    """

    number: int
    names: tuple[str, ...]
    amount: Decimal
    kind: LineKind
    hours: Decimal | None = None
    unit_price: Decimal | None = None
    start_us: int | None = None
    end_us: int | None = None
    sku: str | None = None
    description: str = ""
    tokens: Decimal | None = None


@dataclass(frozen=True, slots=True)
class Bill:
    """A whole invoice in one currency. `number` is the provider's own, or the file's digest where it has none."""

    provider: str
    number: str
    period: str
    currency: str
    form: str
    lines: tuple[BillLine, ...] = field(repr=False)

    @property
    def total(self) -> Decimal:
        return sum((line.amount for line in self.lines), Decimal(0))


@dataclass(frozen=True, slots=True)
class BillFinding:
    """What is wrong with a line of the file (line 1 is the header), and how to mend it."""

    line: int
    code: str
    message: str


class BadBill(ValueError):
    """The invoice cannot be read; nothing was posted. `findings` are what is wrong, line by line (the first hundred)."""

    code = "bad_invoice"

    def __init__(self, message: str, findings: tuple[BillFinding, ...] = ()) -> None:
        shown = "; ".join(f"line {each.line}: {each.message}" for each in findings[:5])
        more = f" (and {len(findings) - 5} more)" if len(findings) > 5 else ""
        super().__init__(f"{message}: {shown}{more}" if findings else message)
        self.findings = findings
