"""Allotment: shares sum to the whole, exactly and always the same."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ledger.allot import Served, Share, allot, allot_rental

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


def test_a_rentals_cost_is_borne_by_the_lines_it_served() -> None:
    served = [Served("batch_a", 0, 30), Served("batch_b", 7, 60), Served("batch_a", 1, 10)]
    allotment = allot_rental(1_000, served)
    assert allotment.shares == (Share("batch_a", 0, 300), Share("batch_b", 7, 600), Share("batch_a", 1, 100))
    assert allotment.by_batch() == {"batch_a": 400, "batch_b": 600}
    assert allotment.unallotted_nano == 0


def test_a_rental_that_served_nothing_is_named_unallotted_not_dropped() -> None:
    allotment = allot_rental(1_000, [])
    assert (allotment.shares, allotment.unallotted_nano, allotment.by_batch()) == ((), 1_000, {})


@settings(deadline=None)
@given(
    TOTALS,
    st.lists(st.builds(Served, st.sampled_from(["a", "b", "c"]), st.integers(0, 5), st.integers(0, 5000)), max_size=30),
)
def test_batches_and_what_is_unallotted_sum_to_the_rental(total: int, served: list[Served]) -> None:
    allotment = allot_rental(total, served)
    assert allotment.total_nano == sum(allotment.by_batch().values()) + allotment.unallotted_nano == total
