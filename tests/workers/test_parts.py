"""Parts: when they are cut, what they hold, and what the broker's answer leads to."""

from __future__ import annotations

import gzip
import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.agent.answers import Finished, Usage
from workers.agent.leases import HeldLease
from workers.agent.lines import Line
from workers.agent.parts import Decision, cut, decide, from_ranges, is_due, to_ranges
from workers.agent.spec import PartLimits

LIMITS = PartLimits(lines=3, seconds=30, bytes=100)


def finished(idx: int, size: int = 10) -> Finished:
    return Finished(idx, "completed", b"x" * (size - 1) + b"\n", Usage(1, 2, 0), 1)


def lease(*lines: Finished, waiting: int = 5) -> HeldLease:
    held = HeldLease("shard_1", 1, "n", 60.0, "/v1/chat/completions", "", 0.0)
    held.admit([Line(n, "c", b"{}", 8) for n in range(waiting)], {}, alone_from=2)
    for at in lines:
        held.keep(at, 100.0)
    return held


@pytest.mark.parametrize(
    ("held", "now", "flush", "due"),
    [
        (lease(), 999.0, True, False),  # nothing finished: nothing to cut, ever
        (lease(finished(1)), 129.9, False, False),  # one young line waits for company
        (lease(finished(1)), 130.0, False, True),  # 30 s old
        (lease(finished(1), finished(2), finished(3)), 100.0, False, True),  # 3 lines
        (lease(finished(1, size=100)), 100.0, False, True),  # 100 bytes
        (lease(finished(1)), 100.0, True, True),  # the machine is going away
        (lease(finished(1), waiting=0), 100.0, False, True),  # the shard is worked off
    ],
)
def test_a_part_is_cut_at_whichever_comes_first(held: HeldLease, now: float, flush: bool, due: bool) -> None:
    assert is_due(held, LIMITS, now, flush=flush) is due


def test_a_lease_may_ask_for_smaller_parts_than_all_others() -> None:
    held = lease(finished(1), finished(2))
    held.part_lines = 2
    assert is_due(held, LIMITS, 100.0, flush=False)


def test_one_part_at_a_time_for_each_lease() -> None:
    held = lease(finished(1))
    held.is_committing = True
    assert not is_due(held, LIMITS, 999.0, flush=True)


def test_a_part_holds_the_lines_as_they_finished_and_tells_them_in_order() -> None:
    lines = [Finished(n, "completed", json.dumps({"idx": n}).encode() + b"\n", Usage(n, 1, 0), 1) for n in (4, 2, 3, 9)]
    part = cut(lines)
    assert [json.loads(row)["idx"] for row in gzip.decompress(part.content).splitlines()] == [4, 2, 3, 9]
    assert part.lines == [[2, 5], [9, 10]]
    assert [row[0] for row in part.usage] == [2, 3, 4, 9]
    assert part.usage[0] == [2, "completed", 2, 1, 0, 1, False, 0]
    assert cut(lines) == part, "the same lines are the same bytes"


@given(st.sets(st.integers(0, 10_000)))
def test_ranges_are_the_set(numbers: set[int]) -> None:
    """Half-open, sorted, not touching; and back again."""
    ranges = to_ranges(sorted(numbers))
    assert from_ranges(ranges) == numbers
    assert all(before[1] < after[0] for before, after in itertools.pairwise(ranges))


def answer(outcome: str, **changes: Any) -> dict[str, Any]:
    return {
        "outcome": outcome,
        "done": [],
        "shard_done": False,
        "lease_lost": False,
        "outcome_before": None,
        "message": None,
    } | changes


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (answer("committed", done=[[0, 3]]), Decision("counted", done=frozenset({0, 1, 2}))),
        (answer("committed_superseded", lease_lost=True), Decision("counted", lease_lost=True)),
        # the answer to the first try was lost: what it was, counts
        (answer("replayed", outcome_before="committed"), Decision("counted")),
        (
            answer("replayed", outcome_before="rejected_overlap", done=[[1, 2]]),
            Decision("recut", recut=frozenset({2, 3}), done=frozenset({1})),
        ),
        (answer("replayed", outcome_before="rejected_terminal"), Decision("void", lease_lost=True)),
        # some are done: the rest again, under a new seq
        (answer("rejected_overlap", done=[[1, 3]]), Decision("recut", recut=frozenset({3}), done=frozenset({1, 2}))),
        # all are done: nothing is left
        (answer("rejected_overlap", done=[[0, 9]]), Decision("recut", recut=frozenset(), done=frozenset(range(9)))),
        # an overlap with nothing of ours would be sent again for ever
        (answer("rejected_overlap", done=[[7, 9]]), Decision("defect")),
        # this seq is another part's: the same lines under the next
        (answer("rejected_conflict"), Decision("recut", recut=frozenset({1, 2, 3}))),
        (answer("rejected_revoked"), Decision("revoked", lease_lost=True)),
        (answer("rejected_terminal"), Decision("void", lease_lost=True)),
        (answer("rejected_invalid", message="why"), Decision("defect")),
    ],
)
def test_each_outcome_of_a_commit_has_its_consequence(said: dict[str, Any], expected: Decision) -> None:
    assert decide(said, [1, 2, 3]) == expected
