"""The cost of a batch is a projection: the shares of a machine always sum to what was booked for it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from broker.costs import _Served, rental_shares

TOTALS = st.integers(0, 10**15)
SERVED = st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 10**9), max_size=6)


@given(TOTALS, SERVED, st.lists(st.sampled_from("xyz"), unique=True, min_size=1))
def test_the_shares_sum_to_the_whole(total: int, served: dict[str, int], rented_for: list[str]) -> None:
    lines = {batch: _Served(1, tokens) for batch, tokens in served.items()}
    shares = rental_shares(total, lines, rented_for)
    assert sum(shares.values()) == total
    assert set(shares) == (set(served) or set(rented_for))


def test_a_machine_that_served_nothing_is_borne_by_those_it_was_rented_for() -> None:
    assert rental_shares(5, {}, ["b", "a"]) == {"a": 3, "b": 2}


def test_who_had_more_tokens_pays_more() -> None:
    assert rental_shares(100, {"a": _Served(1, 75), "b": _Served(9, 25)}, ["a"]) == {"a": 75, "b": 25}
