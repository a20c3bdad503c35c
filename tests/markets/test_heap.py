"""The collector of cycles is off for a moment, and never for good."""

from __future__ import annotations

import gc
import threading
from contextlib import suppress

import pytest

from markets.heap import uncollected


def test_the_collector_is_off_within_and_on_after_a_failure() -> None:
    with suppress(ValueError), uncollected():
        assert not gc.isenabled()
        raise ValueError
    assert gc.isenabled()


@pytest.mark.parametrize("first_out", [0, 1])
def test_two_blocks_that_overlap_leave_it_on(first_out: int) -> None:
    blocks = [uncollected(), uncollected()]
    for block in blocks:
        block.__enter__()
    for which in (first_out, 1 - first_out):
        blocks[which].__exit__(None, None, None)
    assert gc.isenabled()


def test_a_thread_that_found_it_off_within_anothers_block_left_it_off_for_good(monkeypatch: pytest.MonkeyPatch) -> None:
    """An export in its thread, and a poll: the other's block ends between this one's first look and its first step."""
    other, may_leave, has_left = uncollected(), threading.Event(), threading.Event()
    other.__enter__()

    def leave() -> None:
        may_leave.wait(10)
        other.__exit__(None, None, None)
        has_left.set()

    thread = threading.Thread(target=leave)
    thread.start()
    switch_off = gc.disable

    def late() -> None:
        may_leave.set()
        assert has_left.wait(10)
        switch_off()

    monkeypatch.setattr(gc, "disable", late)
    with uncollected():
        assert not gc.isenabled()
    thread.join(10)
    assert gc.isenabled()
