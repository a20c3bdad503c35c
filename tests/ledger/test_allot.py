"""Allotment: shares sum to the whole, exactly and always the same."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ledger.allot import allot

TOTALS = st.integers(0, 10**15)
WEIGHTS = st.lists(st.integers(0, 10**9), min_size=1, max_size=40)


@pytest.mark.parametrize(
    ("total", "weights", "shares"),
    [
        (100, [1, 1, 1], [34, 33, 33]),  # a tie goes to the earlier
        (100, [1, 2, 1], [25, 50, 25]),
        (1, [1, 10], [0, 1]),  # the largest remainder wins, not the first
        (2, [0, 3, 0], [0, 2, 0]),
        (5, [0, 0], [3, 2]),  # weights that say nothing: evenly
        (0, [4, 5], [0, 0]),
        (0, [], []),
    ],
)
def test_shares_by_largest_remainder(total: int, weights: list[int], shares: list[int]) -> None:
    assert allot(total, weights) == shares


@settings(deadline=None)
@given(TOTALS, WEIGHTS)
def test_shares_sum_to_the_total_and_each_is_its_proportion_rounded_up_or_down(total: int, weights: list[int]) -> None:
    shares = allot(total, weights)
    assert sum(shares) == total
    proportions = weights if any(weights) else [1] * len(weights)
    for share, weight in zip(shares, proportions, strict=True):
        assert abs(share - Fraction(total * weight, sum(proportions))) < 1


@settings(deadline=None)
@given(TOTALS, WEIGHTS)
def test_more_weight_never_bears_less(total: int, weights: list[int]) -> None:
    shares = allot(total, weights)
    by_weight = sorted(zip(weights, shares, strict=True))
    for (lighter, less), (heavier, more) in pairwise(by_weight):
        assert lighter == heavier or less <= more


@pytest.mark.parametrize(("total", "weights"), [(-1, [1]), (1, [1, -1]), (1, [])])
def test_what_cannot_be_divided_is_refused(total: int, weights: list[int]) -> None:
    with pytest.raises(ValueError, match=r"negative|nobody"):
        allot(total, weights)
