"""The quick look at a commit's rows takes what the schema takes, and nothing else."""

from __future__ import annotations

from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from broker.api.problems import Problem
from broker.api.wire import WireSchemas, has_plain_usage

SCHEMAS = WireSchemas()
ROW = [0, "completed", 7, 5, 0, 1, False]
VALUES = st.one_of(
    st.integers(-2, 2), st.booleans(), st.none(), st.floats(0, 2), st.sampled_from(["completed", "failed", "x"])
)


def schema_takes(usage: Any) -> bool:
    error = next(iter(SCHEMAS._validators["commit.request"].iter_errors(commit(usage))), None)
    return error is None


def commit(usage: Any) -> dict[str, Any]:
    named = {"epoch": 1, "nonce": "n", "seq": 0, "key": "k", "size": 1, "sha256": "0" * 64, "lines": [[0, 1]]}
    return {**named, "usage": usage, "counters": {}}


@settings(deadline=None)
@given(at=st.integers(0, 6), value=VALUES)
@example(at=0, value=True)
@example(at=6, value=0)
@example(at=3, value=1.0)
@example(at=3, value=2**31)
@example(at=0, value=2**31 - 1)
def test_a_row_with_one_other_value_is_taken_by_both_or_by_neither(at: int, value: Any) -> None:
    row = [*ROW[:at], value, *ROW[at + 1 :]]
    assert has_plain_usage(commit([row])) == schema_takes([row])


@given(length=st.integers(0, 9))
@example(length=8)
def test_a_row_of_another_length_is_taken_by_both_or_by_neither(length: int) -> None:
    row = [*ROW, 1, 2][:length]
    assert has_plain_usage(commit([ROW, row])) == schema_takes([ROW, row])


def test_a_wrong_row_among_many_is_named() -> None:
    try:
        SCHEMAS.check("commit.request", commit([*[ROW] * 100, [0, "done", 7, 5, 0, 1, False]]))
    except Problem as problem:
        assert problem.code == "wire_violation" and problem.param == "$.usage[100][1]"
    else:
        raise AssertionError("it was taken")
