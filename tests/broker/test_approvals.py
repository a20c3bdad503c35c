"""When a batch needs a second person, and who that may be."""

from __future__ import annotations

import pytest

from broker.approvals import needed_because, objection

USD = 10**9


@pytest.mark.parametrize(
    ("above", "quote", "limit", "says"),
    [
        (None, 10**15, None, None),  # nobody set a threshold
        (5 * USD, 5 * USD, 900 * USD, None),  # the quote counts, not how much it might be
        (5 * USD, 5 * USD + 1, None, "it is quoted at $5.000000001, and above $5 a second person approves"),
        (5 * USD, None, 5 * USD, None),
        (5 * USD, None, 6 * USD, "it has no quote yet and may cost $6, and above $5 a second person approves"),
        (5 * USD, None, None, "it has neither a quote nor a max_usd, and above $5 a second person approves"),
        (0, 0, None, None),  # free of charge needs nobody
        (0, 1, None, "it is quoted at $0.000000001, and above $0 a second person approves"),
    ],
)
def test_what_a_batch_may_cost_decides(
    above: int | None, quote: int | None, limit: int | None, says: str | None
) -> None:
    assert needed_because(above_nano=above, quote_nano=quote, max_nano=limit) == says


def test_two_keys_of_one_person_are_one_person() -> None:
    assert objection(approver="ada", proposer="bob") is None
    assert "another principal" in (objection(approver="ada", proposer="ada") or "")
