"""A price over time as text: a few rows of blocks, readable on a terminal and in a pipe alike. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal

from broker.cli.output import usd

BLOCKS = " ▁▂▃▄▅▆▇█"


@dataclass(frozen=True, slots=True)
class Step:
    """From `at` on (Unix seconds) it cost `value`; None: not to be had."""

    at: int
    value: Decimal | None


def chart(steps: Sequence[Step], since: int, until: int, *, columns: int, rows: int = 6) -> list[str]:
    """The lines of a chart: its top and bottom are the extremes of what is shown; a gap is a time without a price.

    >>> chart([Step(0, Decimal(1)), Step(5, Decimal(3))], 0, 10, columns=4, rows=1)
    ['$3.00  ▁▁██', '$1.00  1970-01-01 to 1970-01-01 (UTC)']
    """
    values = _sampled(steps, since, until, columns)
    known = [value for value in values if value is not None]
    if not known:
        return ["no price in this time"]
    low, high = min(known), max(known)
    labels = [usd(str(high)), usd(str(low))]
    width = max(map(len, labels))
    eighths = [_eighths(value, low, high, rows) for value in values]
    lines = []
    for row in range(rows - 1, -1, -1):
        label = labels[0] if row == rows - 1 else ""
        lines.append(f"{label:<{width}}  " + "".join(BLOCKS[max(0, min(8, height - 8 * row))] for height in eighths))
    begin, end = (datetime.fromtimestamp(each, UTC).strftime("%Y-%m-%d") for each in (since, until))
    return [*(each.rstrip() for each in lines), f"{labels[1]:<{width}}  {begin} to {end} (UTC)"]


def _sampled(steps: Sequence[Step], since: int, until: int, columns: int) -> list[Decimal | None]:
    """What held at the end of each column's time."""
    found: list[Decimal | None] = []
    for column in range(1, columns + 1):
        at = since + (until - since) * column // columns
        held = [step for step in steps if step.at < at or step.at == since == at]
        found.append(held[-1].value if held else None)
    return found


def _eighths(value: Decimal | None, low: Decimal, high: Decimal, rows: int) -> int:
    """Height in eighths of a row; what has a price is at least one eighth high."""
    if value is None:
        return 0
    return 8 * rows if high == low else 1 + int((value - low) / (high - low) * (8 * rows - 1))
