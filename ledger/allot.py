"""Allotment: a total is divided so that the shares sum to it exactly. Pure.

The cost of a line is a projection of the entries, never a row.
"""

from __future__ import annotations

from collections.abc import Sequence


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
