"""What a charge's hours, prices and costs are in FOCUS' terms, at scale 18. Pure.

A month has millions of charges of some thousand machines, which are read each minute: what hangs on machine and seconds alone
is worked out once for each pair, and counted off.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ledger.focus.charge import Charge, Subject
from ledger.focus.columns import NANO_TO_SCALE, UNIT, CodedDecimals, Decimals
from ledger.money import div_half_even

Numbers = Decimals | CodedDecimals


@dataclass(frozen=True, slots=True)
class Prices:
    """Columns of a piece: quantities and unit prices are null where nothing was metered."""

    quantities: Numbers
    unit_prices: Numbers
    contracted: Numbers
    list_prices: Numbers
    listed: Numbers


def prices_of(charges: Sequence[Charge], columns: Charge, subjects: Sequence[Subject]) -> Prices:
    """`columns` are the charges turned: a tuple of each field."""
    units = [subject.unit_nano for subject in subjects]
    # of machine time without a commitment everything follows from machine and seconds
    is_plain = (
        not any(columns.commitment)  # type: ignore[arg-type]
        and None not in columns.seconds  # type: ignore[operator]
        and columns.quantity_nano.count(None) == len(charges)  # type: ignore[union-attr]
        and all(units[subject] for subject in set(columns.subject))  # type: ignore[call-overload]
        and not any(columns.foreign)  # type: ignore[arg-type]
    )
    if is_plain and (len(set(columns.category)) == 1 or not any(subject.list_nano for subject in subjects)):
        pairs = list(zip(columns.subject, columns.seconds, strict=True))  # type: ignore[call-overload]
        firsts = dict(zip(pairs, charges, strict=True))
        numbers = {pair: number for number, pair in enumerate(firsts)}
        codes = list(map(numbers.__getitem__, pairs))
        chosen = list(firsts.values())

        def make(values: Sequence[int | None]) -> Numbers:
            return CodedDecimals(values, codes)
    else:
        chosen, make = list(charges), Decimals
    return _prices(chosen, units, subjects, make)


def _prices(
    charges: Sequence[Charge],
    units: Sequence[int],
    subjects: Sequence[Subject],
    make: Callable[[Sequence[int | None]], Numbers],
) -> Prices:
    unit_values = [_unit_price(charge, units[charge.subject]) for charge in charges]
    contracted_values = [_contracted(charge, units[charge.subject]) for charge in charges]
    unit_prices, contracted = make(unit_values), make(contracted_values)
    list_prices, listed = unit_prices, contracted
    if any(subject.list_nano for subject in subjects):
        lists = [_list_nano(charge, subjects[charge.subject]) for charge in charges]
        list_prices = make(
            [nano * NANO_TO_SCALE if nano else price for nano, price in zip(lists, unit_values, strict=True)]
        )
        listed = make(
            [
                _of_seconds(charge.seconds, nano) if nano and charge.seconds is not None else cost
                for charge, nano, cost in zip(charges, lists, contracted_values, strict=True)
            ]
        )
    return Prices(make([quantity_of(charge) for charge in charges]), unit_prices, contracted, list_prices, listed)


def quantity_of(charge: Charge) -> int | None:
    if charge.quantity_nano is not None:
        return charge.quantity_nano * NANO_TO_SCALE
    return _hours(charge.seconds)


def _hours(seconds: int | None) -> int | None:
    """Seconds as hours at scale 18: the error of a third of an hour is below 1e-18 h."""
    if seconds is None:
        return None
    return seconds * UNIT // 3600


def _unit_price(charge: Charge, unit_nano: int) -> int | None:
    """Of one PricingUnit at scale 18: the rental's hour, or where that is not the price what the charge says of itself."""
    if not charge.is_metered:
        return None
    if _has_hourly_price(charge, unit_nano):
        return unit_nano * NANO_TO_SCALE
    return of_quantity(charge, abs(charge.priced_nano))


def of_quantity(charge: Charge, nano: int) -> int | None:
    """So many nano-units for one PricingUnit, at scale 18."""
    if charge.quantity_nano is not None:
        return div_half_even(nano * UNIT, abs(charge.quantity_nano)) if charge.quantity_nano else None
    return None if charge.seconds is None else div_half_even(nano * NANO_TO_SCALE * 3600, abs(charge.seconds))


def _has_hourly_price(charge: Charge, unit_nano: int) -> bool:
    return bool(unit_nano) and charge.seconds is not None and charge.commitment is None


def _list_nano(charge: Charge, subject: Subject) -> int:
    """The hour's price that the discount of an interruptible machine is taken off; 0 where what was charged is the list price,
    as far as anybody knows."""
    is_usage = charge.category == "Usage" and charge.seconds is not None
    return subject.list_nano if is_usage and charge.commitment is None and charge.foreign is None else 0


def _contracted(charge: Charge, unit_nano: int) -> int:
    """Unit price x quantity at scale 18: the booked amount (whole nanos, rounded on the meter's total) may miss it by a
    nano."""
    if charge.seconds is None or not _has_hourly_price(charge, unit_nano):
        return charge.priced_nano * NANO_TO_SCALE
    return _of_seconds(charge.seconds, unit_nano)


def _of_seconds(seconds: int, nano_hour: int) -> int:
    """At scale 18; negative for seconds that are given back."""
    cost = div_half_even(nano_hour * abs(seconds) * NANO_TO_SCALE, 3600)
    return cost if seconds >= 0 else -cost
