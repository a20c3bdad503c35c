"""Range algebra agrees with Python's sets."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs import ranges

line_sets = st.sets(st.integers(0, 40))


@given(left=line_sets, right=line_sets)
def test_algebra_agrees_with_sets(left: set[int], right: set[int]) -> None:
    """Every operation gives, in normal form, what Python's sets give."""
    a, b = ranges.from_lines(left), ranges.from_lines(right)
    assert ranges.union(a, b) == ranges.from_lines(left | right)
    assert ranges.intersection(a, b) == ranges.from_lines(left & right)
    assert ranges.difference(a, b) == ranges.from_lines(left - right)
    assert ranges.intersects(a, b) == bool(left & right)
    assert ranges.contains(a, b) == (right <= left)
    assert ranges.count(a) == len(left)
    assert list(ranges.lines_of(a)) == sorted(left)
    assert ranges.problem(a) is None


@given(pairs=st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30))))
def test_normal_form_is_the_only_one_without_a_problem(pairs: list[tuple[int, int]]) -> None:
    """A list of pairs has no problem exactly when it is already in normal form."""
    assert (ranges.problem(pairs) is None) == (ranges.normal(pairs) == tuple(pairs))


@pytest.mark.parametrize(
    "pairs", [[(-1, 2)], [(3, 3)], [(4, 2)], [(0, 2), (2, 3)], [(0, 2), (1, 3)], [(5, 6), (0, 1)], [(1, 2, 3)]]
)
def test_what_is_not_a_set_of_lines_has_a_problem(pairs: list[tuple[int, ...]]) -> None:
    assert ranges.problem(pairs) is not None
