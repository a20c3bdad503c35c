"""Movers: why spend changed, split into price × volume × mix × efficiency, which sum to the change exactly. Pure.

Cost = requests × tokens per request × GPU-seconds per token × price per GPU-second, within each (model, machine kind). Volume
is how much work there was at the old mix; mix is which models and machines it went to; efficiency is how much machine time a
token took; price is what that time cost. Whole nanos: what rounding leaves goes to the largest part.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction


@dataclass(frozen=True, slots=True)
class Week:
    """What one thing (a model on a machine kind, a provider) cost and did in a week: nano-USD, billed seconds, tokens."""

    nano: int = 0
    seconds: int = 0
    tokens: int = 0


@dataclass(frozen=True, slots=True)
class Mover:
    """The four parts sum to `nano`, the change. Without tokens to count by, time is the volume; without time, the whole change
    is price."""

    name: str
    nano: int
    price_nano: int
    volume_nano: int
    mix_nano: int
    efficiency_nano: int


def movers(before: Mapping[str, Week], after: Mapping[str, Week]) -> list[Mover]:
    """One for each name in either week, largest change first. Sums over all names are of the whole change."""
    names = sorted({*before, *after})
    nothing = Week()
    old_tokens = sum(each.tokens for each in before.values())
    new_tokens = sum(each.tokens for each in after.values())
    growth = Fraction(new_tokens, old_tokens) if old_tokens else None
    found = [_mover(name, before.get(name, nothing), after.get(name, nothing), growth) for name in names]
    return sorted(found, key=lambda each: (-abs(each.nano), each.name))


def _mover(name: str, old: Week, new: Week, growth: Fraction | None) -> Mover:
    volume, mix, efficiency, price = _parts(old, new, growth)
    change = new.nano - old.nano
    parts = _whole((volume, mix, efficiency, price), change)
    return Mover(name, change, volume_nano=parts[0], mix_nano=parts[1], efficiency_nano=parts[2], price_nano=parts[3])


def _parts(old: Week, new: Week, growth: Fraction | None) -> tuple[Fraction, Fraction, Fraction, Fraction]:
    """One factor after the other goes from old to new: tokens of all, this one's share of them, seconds per token, price."""
    zero, change = Fraction(0), Fraction(new.nano - old.nano)
    if old.nano == 0 or old.seconds == 0:  # it is new: all of it is where work went
        return zero, change, zero, zero
    if new.seconds == 0:  # it is gone
        return (zero, change, zero, zero) if new.nano == 0 else (zero, zero, zero, change)
    if not old.tokens or not new.tokens:  # no tokens to tell work by: its time is
        at_old_price = Fraction(old.nano * new.seconds, old.seconds)
        return at_old_price - old.nano, zero, zero, new.nano - at_old_price
    grown = old.nano * (growth if growth is not None else Fraction(new.tokens, old.tokens))
    mixed = Fraction(old.nano * new.tokens, old.tokens)
    timed = Fraction(old.nano * new.seconds, old.seconds)
    return grown - old.nano, mixed - grown, timed - mixed, new.nano - timed


def _whole(parts: tuple[Fraction, ...], total: int) -> list[int]:
    found = [round(each) for each in parts]
    largest = max(range(len(parts)), key=lambda at: abs(parts[at]))
    found[largest] += total - sum(found)
    return found
