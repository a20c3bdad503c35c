"""The batch's state machine, row by row."""

from __future__ import annotations

from itertools import product
from typing import Any, get_args

import pytest

from jobs.state import BatchView, Event, decide, takes_answers
from jobs.types import TERMINAL, BatchStatus

NOW, EXPIRES = 1_000, 2_000


def view(status: Any, ending: Any = None, **facts: Any) -> BatchView:
    return BatchView(status=status, ending=ending, expires_us=EXPIRES, **({"undone": 3, "live_leases": 1} | facts))


TABLE = [
    (view("validating"), "validated", NOW, ("in_progress", None)),
    (view("validating"), "validated", EXPIRES, ("finalizing", "expired")),  # validation took too long
    (view("validating"), "invalid", NOW, ("failed", None)),
    (view("validating"), "cancel", NOW, ("cancelling", None)),
    (view("validating"), "tick", EXPIRES, ("finalizing", "expired")),
    (view("validating"), "tick", NOW, ("validating", None)),
    (view("in_progress"), "answered", NOW, ("in_progress", None)),
    (view("in_progress", undone=0), "answered", NOW, ("finalizing", "completed")),
    (view("in_progress"), "tick", EXPIRES - 1, ("in_progress", None)),
    (view("in_progress"), "tick", EXPIRES, ("finalizing", "expired")),
    (view("in_progress", undone=0), "tick", EXPIRES, ("finalizing", "completed")),  # all answers came in time
    (view("in_progress"), "cancel", NOW, ("cancelling", None)),
    (view("cancelling", cancelling_us=NOW, cancel_grace_us=500), "tick", NOW + 499, ("cancelling", None)),
    (view("cancelling", cancelling_us=NOW, cancel_grace_us=500), "tick", NOW + 500, ("cancelling", "cancelled")),
    (view("cancelling", live_leases=0, cancel_grace_us=500), "tick", NOW, ("cancelling", "cancelled")),  # drained
    # nobody works for it, but answers that cost nothing are still to be copied; not for longer than the grace
    (view("cancelling", live_leases=0, repeats_wait=True, cancel_grace_us=500), "tick", NOW, ("cancelling", None)),
    (
        view("cancelling", live_leases=0, repeats_wait=True, cancelling_us=NOW, cancel_grace_us=500),
        "tick",
        NOW + 500,
        ("cancelling", "cancelled"),
    ),
    (view("cancelling", cancel_grace_us=5_000, cancelling_us=NOW), "tick", EXPIRES, ("cancelling", "cancelled")),
    (view("cancelling", cancelling_us=NOW), "answered", NOW, ("cancelling", None)),  # one answer does not end the grace
    (view("cancelling", undone=0), "answered", NOW, ("cancelling", "cancelled")),
    (view("cancelling"), "validated", NOW, ("cancelling", None)),  # cancelled while validation ran
    (view("cancelling"), "cancel", NOW, ("cancelling", None)),
    (view("in_progress"), "pause", EXPIRES + 1, ("in_progress", None)),  # time passing is the tick's, not the pause's
    (view("validating"), "pause", NOW, ("validating", None)),
    (view("in_progress"), "resume", NOW, ("in_progress", None)),
    (view("finalizing", "completed"), "composed", NOW, ("completed", "completed")),
    (view("finalizing", "expired"), "composed", NOW, ("expired", "expired")),
    (view("cancelling", "cancelled"), "composed", NOW, ("cancelled", "cancelled")),
    (view("finalizing", "completed"), "withdrawn", NOW, ("in_progress", None)),  # a damaged part: its lines run again
    (view("finalizing", "completed"), "withdrawn", EXPIRES, ("finalizing", "expired")),  # … if there is time
    (view("finalizing", "expired"), "withdrawn", NOW, ("finalizing", "expired")),
    (view("cancelling", "cancelled"), "withdrawn", NOW, ("cancelling", "cancelled")),
]


@pytest.mark.parametrize(("before", "event", "now_us", "after"), TABLE)
def test_an_event_leads_where_the_table_says(
    before: BatchView, event: Event, now_us: int, after: tuple[str, str]
) -> None:
    decision = decide(before, event, now_us)
    assert (decision.status, decision.ending, decision.refused) == (*after, None)


def test_closing_a_batch_ends_its_leases() -> None:
    for before, event, now_us, _ in TABLE:
        decision = decide(before, event, now_us)
        closes = before.ending is None and decision.ending is not None and before.status != "validating"
        assert decision.close_leases == closes


def test_terminal_statuses_absorb_everything() -> None:
    for status, event, now_us in product(sorted(TERMINAL), get_args(Event), (NOW, EXPIRES)):
        decision = decide(view(status, None if status == "failed" else status), event, now_us)
        assert (decision.status, decision.refused) == (status, None)


REFUSED = [
    (view("in_progress"), "composed"),  # nothing is published that was not closed first
    (view("in_progress"), "validated"),
    (view("validating"), "answered"),
    (view("validating"), "composed"),
    (view("cancelling"), "composed"),
    (view("finalizing", "completed"), "cancel"),
    (view("finalizing", "completed"), "answered"),  # a commit after closing is a defect, not an event
]


@pytest.mark.parametrize(("before", "event"), REFUSED)
def test_what_cannot_happen_is_refused_and_changes_nothing(before: BatchView, event: Event) -> None:
    decision = decide(before, event, NOW)
    assert decision.refused is not None
    assert (decision.status, decision.ending) == (before.status, before.ending)


def test_only_open_batches_take_answers() -> None:
    taking = {
        (status, ending)
        for status, ending in product(get_args(BatchStatus), (None, "completed", "expired", "cancelled"))
        if takes_answers(status, ending)
    }
    assert taking == {("in_progress", None), ("cancelling", None)}


def test_a_pause_is_decided_by_pause_resume_and_cancel_alone() -> None:
    for status, event in product(("validating", "in_progress"), get_args(Event)):
        wanted = {"pause": True, "resume": False, "cancel": False}.get(event)
        assert decide(view(status), event, NOW).paused is wanted, (status, event)
    for status in (*TERMINAL, "cancelling", "finalizing"):
        assert decide(view(status), "pause", NOW).paused is None
