"""The meter that bills and the ledger that accrues share no code and must agree to the nano."""

from __future__ import annotations

from decimal import Decimal

from hypothesis import given
from hypothesis import strategies as st

from ledger import accrual
from ledger.money import cost_of_seconds, from_nano, to_nano
from markets.meter import Terms, amount, billed_seconds

prices = st.integers(1, 10**14).map(lambda nano: Decimal(nano).scaleb(-9))
increments = st.sampled_from([1, 10, 60, 3600])
minimums = st.sampled_from([0, 1, 60, 90, 600])
instants = st.integers(0, 10**12)


@given(prices, increments, minimums, instants, instants, st.booleans())
def test_the_invoice_is_what_the_ledger_accrues(
    price: Decimal, granularity_s: int, minimum_s: int, started_us: int, until_us: int, final: bool
) -> None:
    """Invariant: same seconds, same amount, for every price of up to nine decimals."""
    terms = Terms(price, granularity_s, minimum_s)
    seconds = billed_seconds(terms, started_us, until_us, final=final)
    assert seconds == accrual.billed_seconds(started_us, until_us, granularity_s, minimum_s, final)
    assert amount(terms, seconds) == from_nano(cost_of_seconds(to_nano(price), seconds))


@given(prices, increments, minimums, instants, st.lists(instants, max_size=5), instants)
def test_what_runs_is_never_billed_above_its_end(
    price: Decimal, granularity_s: int, minimum_s: int, started_us: int, looks: list[int], lifetime_us: int
) -> None:
    """Invariant: closed increments at any moment of the life ≤ the final bill, and they only grow."""
    terms = Terms(price, granularity_s, minimum_s)
    final = billed_seconds(terms, started_us, started_us + lifetime_us, final=True)
    seen = [billed_seconds(terms, started_us, started_us + min(at, lifetime_us), final=False) for at in sorted(looks)]
    assert seen == sorted(seen)
    assert all(seconds <= final for seconds in seen)
