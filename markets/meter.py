"""What a provider bills: seconds in whole increments, and their price. Independent of the ledger, which it checks.

Decimal and integers only. The amount of a rental is rounded once, half to even, to 1e-9 of the currency's unit.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import ROUND_HALF_EVEN, Context, Decimal

_NANO = Decimal("1e-9")
_EXACT = Context(prec=60, rounding=ROUND_HALF_EVEN)  # the default of 28 digits could round twice
_SECOND_US = 1_000_000


@dataclass(frozen=True, slots=True)
class Terms:
    """How a rental is billed: `price` per hour, increments of `granularity_s`, at least `minimum_s`."""

    price: Decimal
    granularity_s: int
    minimum_s: int


def billed_seconds(terms: Terms, started_us: int, until_us: int, *, final: bool) -> int:
    """Seconds billed for a machine that ran from `started_us` to `until_us`.

    At the end (`final`) a begun increment is billed whole and the minimum is due. While the machine runs only closed
    increments count, and the minimum becomes due with the first of them.
    """
    elapsed_us = max(0, until_us - started_us)
    increment_us = terms.granularity_s * _SECOND_US
    closed, rest = divmod(elapsed_us, increment_us)
    increments = closed + (1 if final and rest else 0)
    if increments == 0:
        return 0
    return max(terms.minimum_s, increments * terms.granularity_s)


def amount(terms: Terms, seconds: int) -> Decimal:
    """Price of `seconds`, rounded once.

    >>> amount(Terms(Decimal("0.12"), 1, 0), 3600)
    Decimal('0.120000000')
    """
    hours = _EXACT.divide(_EXACT.multiply(terms.price, Decimal(seconds)), Decimal(3600))
    return hours.quantize(_NANO, context=_EXACT)
