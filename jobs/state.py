"""The batch's state machine: what an event makes of a batch, as a value. No clock, no database.

Statuses are OpenAI's. A batch is *closed* when `ending` is set: it takes no more answers, its parts are final, and only
the finaliser moves it on. Terminal statuses absorb every event.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from jobs.types import TERMINAL, BatchStatus

Ending = Literal["completed", "expired", "cancelled"]
Event = Literal["validated", "invalid", "cancel", "tick", "answered", "composed", "withdrawn", "pause", "resume"]


class BatchView(msgspec.Struct, frozen=True, kw_only=True):
    """What the machine may know of a batch: `undone` lines without an answer, `live_leases` not yet expired.

    `repeats_wait`: lines that repeat an answered one may still be to be answered, which costs nothing.
    """

    status: BatchStatus
    ending: Ending | None
    expires_us: int
    cancelling_us: int | None = None
    undone: int = 0
    live_leases: int = 0
    repeats_wait: bool = False
    cancel_grace_us: int = 0


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """The new status and ending. `close_leases`: end all leases of the batch now. `paused` None leaves it as it is.

    `refused` says why the event cannot happen in this state; then nothing changes.
    """

    status: BatchStatus
    ending: Ending | None = None
    close_leases: bool = False
    paused: bool | None = None
    refused: str | None = None


def takes_answers(status: str, ending: str | None) -> bool:
    """Whether commits still count: while it runs, and while a cancelled batch drains."""
    return status in ("in_progress", "cancelling") and ending is None


def starts_lines(status: str, ending: str | None, paused_us: int | None) -> bool:
    """Whether a line of the batch that is not in flight yet may go to an engine."""
    return status == "in_progress" and ending is None and paused_us is None


def decide(view: BatchView, event: Event, now_us: int) -> Decision:
    """The whole table. `tick` is time passing; `answered` follows every counted commit.

    validating   validated → in_progress; invalid → failed; cancel → cancelling; expired → closed as expired
    in_progress  all lines answered → closed as completed; expired → closed as expired; cancel → cancelling
    cancelling   all answered; at a tick also drained (no lease, no repeat waits), grace over, expired → closed as cancelled
    pause and resume (validating, in_progress) change nothing else: the deadline goes on, and what is in flight is
    finished; cancelling ends a pause
    closed       composed → its ending; withdrawn → in_progress again if it was to complete and there is time
    terminal     absorbs everything
    """
    if view.status in TERMINAL:
        return _same(view)
    if view.ending is not None:
        return _closed(view, view.ending, event, now_us)
    match view.status:
        case "validating":
            return _validating(view, event, now_us)
        case "in_progress":
            return _in_progress(view, event, now_us)
        case "cancelling":
            return _cancelling(view, event, now_us)
    return _refuse(view, event)


def _validating(view: BatchView, event: Event, now_us: int) -> Decision:
    match event:
        case "cancel" | "pause" | "resume":
            return _asked(view, event)
        case "invalid":
            return Decision(status="failed")
        case "validated" | "tick" if now_us >= view.expires_us:
            return Decision(status="finalizing", ending="expired")
        case "validated":
            return Decision(status="in_progress")
        case "tick":
            return _same(view)
    return _refuse(view, event)


def _in_progress(view: BatchView, event: Event, now_us: int) -> Decision:
    match event:
        case "cancel" | "pause" | "resume":
            return _asked(view, event)
        case "answered" | "tick" if view.undone <= 0:
            # A commit after expiry was refused, so a batch that has all its answers had them in time.
            return Decision(status="finalizing", ending="completed", close_leases=True)
        case "answered" | "tick" if now_us >= view.expires_us:
            return Decision(status="finalizing", ending="expired", close_leases=True)
        case "answered" | "tick":
            return _same(view)
    return _refuse(view, event)


def _asked(view: BatchView, event: Event) -> Decision:
    """What a person may ask of a batch that is open."""
    if event == "cancel":
        return Decision(status="cancelling", paused=False)
    return Decision(status=view.status, paused=event == "pause")


def _cancelling(view: BatchView, event: Event, now_us: int) -> Decision:
    match event:
        case "cancel" | "validated" | "invalid":
            # Cancelling twice is one cancellation; a validation that ends after it changes nothing.
            return _same(view)
        case "answered" if view.undone > 0:
            return _same(view)
        case "answered" | "tick":
            grace_over = view.cancelling_us is not None and now_us >= view.cancelling_us + view.cancel_grace_us
            is_drained = view.undone <= 0 or (view.live_leases == 0 and not view.repeats_wait)
            if is_drained or grace_over or now_us >= view.expires_us:
                return Decision(status="cancelling", ending="cancelled", close_leases=True)
            return _same(view)
    return _refuse(view, event)


def _closed(view: BatchView, ending: Ending, event: Event, now_us: int) -> Decision:
    match event:
        case "composed":
            return Decision(status=ending, ending=ending)
        case "withdrawn" if ending == "completed":
            if now_us >= view.expires_us:
                return Decision(status="finalizing", ending="expired")
            return Decision(status="in_progress")
        case "withdrawn" | "tick" | "validated" | "invalid":
            return _same(view)
        case "cancel" if view.status == "cancelling":
            return _same(view)
    return _refuse(view, event)


def _same(view: BatchView) -> Decision:
    return Decision(status=view.status, ending=view.ending)


def _refuse(view: BatchView, event: Event) -> Decision:
    closed = f", about to be {view.ending}" if view.ending else ""
    return Decision(
        status=view.status,
        ending=view.ending,
        refused=f"{event!r} cannot happen to a batch that is {view.status}{closed}",
    )
