"""Nano-units: money as integers of 1e-9 of the currency's unit. Of `ledger`, other rooms may import this alone."""

from __future__ import annotations

from decimal import ROUND_HALF_EVEN, Decimal

NANO = 1_000_000_000
SECONDS_PER_HOUR = 3600


def to_nano(amount: Decimal) -> int:
    """Decimal units to integer nano-units, half to even. Raises ValueError for NaN and infinities.

    >>> to_nano(Decimal("0.0000000015"))
    2
    """
    if not amount.is_finite():
        raise ValueError(f"amount {amount} is not a number of money")
    return int((amount * NANO).to_integral_value(rounding=ROUND_HALF_EVEN))


def from_nano(nano: int) -> Decimal:
    """Integer nano-units to Decimal units, exact.

    >>> from_nano(1_500_000_000)
    Decimal('1.500000000')
    """
    return Decimal(nano).scaleb(-9)


def in_usd(nano: int) -> str:
    """Nano-USD as people read them in a message: exact, without zeros at the end.

    >>> in_usd(250_000_000), in_usd(1), in_usd(-20_000_000_000)
    ('$0.25', '$0.000000001', '-$20')
    """
    sign = "-" if nano < 0 else ""
    amount = from_nano(abs(nano)).normalize() if nano else Decimal(0)
    return f"{sign}${amount:f}"


def in_units(nano: int, unit: str) -> str:
    """Nano-units as people read them, in the unit that they are of.

    >>> in_units(250_000_000, "USD"), in_units(1_500_000_000, "AKT"), in_units(2_000, "MTOKEN")
    ('$0.25', '1.5 AKT', '2 tokens')
    """
    if unit == "USD":
        return in_usd(nano)
    if unit == "MTOKEN":
        return f"{nano // 1000:,} tokens"
    return f"{'-' if nano < 0 else ''}{in_usd(abs(nano)).removeprefix('$')} {unit}"


def cost_of_seconds(price_nano_hour: int, seconds: int) -> int:
    """Nano-units for `seconds` at an hourly price, rounded once, half to even, on the cumulative amount.

    Callers book differences of this function, so that a rental's intervals always sum to the rounding of the whole.

    >>> cost_of_seconds(1_000_000_000, 1) + (cost_of_seconds(1_000_000_000, 3600) - cost_of_seconds(1_000_000_000, 1))
    1000000000
    """
    return div_half_even(price_nano_hour * seconds, SECONDS_PER_HOUR)


def div_half_even(numerator: int, denominator: int) -> int:
    """Integer division of non-negative numbers, half to even, without floats."""
    quotient, rest = divmod(numerator, denominator)
    twice = 2 * rest
    if twice > denominator or (twice == denominator and quotient % 2 == 1):
        return quotient + 1
    return quotient


def most_of_tokens(
    input_tokens: int,
    output_tokens: int,
    input_nano: int,
    output_nano: int,
    *,
    buffer_ppm: int = 1_000_000,
    most_input: int = 0,
) -> int:
    """Nano-units that so many tokens cost at most, at prices of a million; rounded up.

    Prompts are estimated before they are counted, so a buffer of at least 1 (in millionths) is on them, or they are `most_input`
    where that is more. Planner and hold ask this one function: when they asked two, a batch was planned and refused for ever.

    >>> most_of_tokens(10_000, 100_000, 1_000_000_000, 10_000_000_000, buffer_ppm=1_250_000)
    1012500000
    """
    fresh = -(-input_tokens * max(buffer_ppm, 1_000_000) // 1_000_000)
    return -(-(max(fresh, most_input) * input_nano + output_tokens * output_nano) // 1_000_000)
