"""Allotment: a total is divided so that the shares sum to it exactly. Pure.

The cost of a line is a projection of the entries, never a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Served:
    """A line that a rental worked on. `weight`: what it cost the machine (its tokens), in any one unit, 0 or more."""

    batch: str
    idx: int
    weight: int


@dataclass(frozen=True, slots=True)
class Share:
    """What a line bears of a rental's cost."""

    batch: str
    idx: int
    nano: int


@dataclass(frozen=True, slots=True)
class Allotment:
    """How a rental's cost divides: `shares` in the order of the lines given, and what no line bears, `unallotted_nano`.

    Unallotted is the whole cost of a rental that served nothing (idle, or lost before its first commit), else 0.
    """

    shares: tuple[Share, ...]
    unallotted_nano: int

    @property
    def total_nano(self) -> int:
        return self.unallotted_nano + sum(share.nano for share in self.shares)

    def by_batch(self) -> dict[str, int]:
        """Cost per batch, in the order of the batches' first lines. Without what is unallotted."""
        sums: dict[str, int] = {}
        for share in self.shares:
            sums[share.batch] = sums.get(share.batch, 0) + share.nano
        return sums


def allot(total_nano: int, weights: Sequence[int]) -> list[int]:
    """Divide `total_nano` in proportion to `weights`, exactly (largest remainder, Hamilton's method).

    Each share is the rounded-down proportion or one more; ties go to the earlier position. Weights that are all zero
    say nothing about proportions: the total is divided evenly. Raises ValueError for a negative total or weight, and
    for no weights at all with a total to divide.

    >>> allot(100, [1, 1, 1])
    [34, 33, 33]
    >>> allot(5, [0, 0])
    [3, 2]
    """
    if total_nano < 0 or any(weight < 0 for weight in weights):
        raise ValueError(f"total {total_nano} with weights from {min(weights, default=0)}: neither may be negative")
    if not weights:
        if total_nano:
            raise ValueError(f"total {total_nano} cannot be divided among nobody; name it unallotted")
        return []
    proportions = weights if any(weights) else [1] * len(weights)
    whole = sum(proportions)
    parts = [divmod(total_nano * weight, whole) for weight in proportions]
    shares = [quotient for quotient, _ in parts]
    # sorted is stable: among equal remainders the earlier position comes first
    by_remainder = sorted(range(len(parts)), key=lambda position: -parts[position][1])
    for position in by_remainder[: total_nano - sum(shares)]:
        shares[position] += 1
    return shares


def allot_rental(total_nano: int, served: Sequence[Served]) -> Allotment:
    """Divide a rental's accrued total among the lines it served; a line served twice bears two shares.

    >>> allot_rental(10, []).unallotted_nano
    10
    """
    if not served:
        return Allotment((), total_nano)
    shares = allot(total_nano, [line.weight for line in served])
    return Allotment(tuple(Share(line.batch, line.idx, nano) for line, nano in zip(served, shares, strict=True)), 0)
