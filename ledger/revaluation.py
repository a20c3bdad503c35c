"""Revaluation: what is held in other units than USD, at the rates of a day, and what it would gain or lose. Pure; books nothing.

Gains are booked when a unit is spent (`Income:FX:Realised`); until then they are unrealised, and this says how much that is.
What has no rate is worth None and is in no sum: it is not worth nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from ledger.event import Event
from ledger.lots import Lot, moved
from ledger.rates import USD, DatedRate


@dataclass(frozen=True, slots=True)
class Valued:
    """`nano` of `unit`, in nano-USD at `rate` (None: no rate is known)."""

    unit: str
    nano: int
    rate: DatedRate | None
    usd_nano: int | None


@dataclass(frozen=True, slots=True)
class OpenLot:
    """What is left of a lot: its worth, and what that did cost in nano-USD at the rate of the day it was bought."""

    lot: Lot
    worth: Valued
    cost_usd_nano: int | None

    @property
    def gain_nano(self) -> int | None:
        """Unrealised; negative is a loss. None where its worth or its cost is unknown."""
        if self.worth.usd_nano is None or self.cost_usd_nano is None:
            return None
        return self.worth.usd_nano - self.cost_usd_nano


def in_usd_nano(nano: int, unit: str, rate: DatedRate | None) -> int | None:
    """Nano-USD, half to even, exact whatever the rate's digits are; None without a rate.

    >>> from decimal import Decimal
    >>> in_usd_nano(3, "AKT", DatedRate("AKT", "USD", 0, "s", Decimal("0.5"))), in_usd_nano(3, "AKT", None)
    (2, None)
    """
    if unit == USD:
        return nano
    return None if rate is None else round(Fraction(nano) * Fraction(rate.rate))


def valued(nano: int, unit: str, rates: Mapping[str, DatedRate]) -> Valued:
    rate = rates.get(unit)
    return Valued(unit, nano, rate, in_usd_nano(nano, unit, rate))


def lots_after(events: Iterable[tuple[int, Event]]) -> list[Lot]:
    """The lots that are left after these exchanges (each with its number in the books, in their order). Raises LotsExhausted
    when one spends what only a later one bought."""
    pools: dict[str, list[Lot]] = {}
    for seq, event in events:
        moved(event, seq, pools)
    return [lot for unit in sorted(pools) for lot in sorted(pools[unit], key=lambda each: each.seq) if lot.left_nano]


def revalued(
    lots: Sequence[Lot], rates: Mapping[str, DatedRate], bought_at: Mapping[int, DatedRate | None]
) -> list[OpenLot]:
    """`rates` by unit, of the day that is asked for; `bought_at` by the lot's number: its cost's unit when it was bought."""
    return [
        OpenLot(
            lot,
            valued(lot.left_nano, lot.unit, rates),
            in_usd_nano(lot.left_cost_nano, lot.cost_unit, bought_at.get(lot.seq)),
        )
        for lot in lots
    ]


def total(parts: Iterable[int | None]) -> int:
    """The sum of what is known."""
    return sum(each for each in parts if each is not None)
