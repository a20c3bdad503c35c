"""Why a batch does not move, since when, and when it is expected to have ended: from facts to words. Pure.

Every batch that has not ended either moves (a worker has lines of it) or has one word and at least one reason here. The
words of the plan and of the ceiling are taken over; the others are found from how far the batch and its machines are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from jobs.types import TERMINAL

On = Literal[
    "validation",
    "planning",
    "capacity",
    "budget",
    "residency",
    "price_ceiling",
    "quota",
    "approval",
    "deadline",
    "model",
    "latency",
    "later",
    "paused",
    "start",
    "finalizing",
]
Basis = Literal["plan", "relaxed", "deadline"]
SECOND_US = 1_000_000
# A cautious guess of how fast the files of a closed batch are composed; nothing but an estimate hangs on it.
COMPOSED_LINES_PER_S = 20_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Cause:
    """Somebody's word on why: the plan's, the ceiling's (`is_final`: no plan looks at the batch), or a proposal's."""

    on: str
    reasons: Sequence[str]
    since_us: int
    is_final: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """A rental that lives and that the plan gave the batch: intended, creating or running, with its worker's state.

    `is_busy`: it has lines of other batches.
    """

    rental: str
    state: str
    worker: str | None
    since_us: int
    is_busy: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What is known of a batch that bears on whether it moves. Times are microseconds UTC.

    `closing_us` is since when it is cancelled or finalised. `open_lines` have no answer yet; `own_lines` of them the broker
    answers itself. `leases` have not expired. `planned_end_us` is the newest plan's, None when it gave the batch no place.
    `held_back` says of offers that the batch was to use, or failed on, until when they are not rented. `quoted_us` is how
    long the whole batch was to take. `has_policy`: its pinned policy is stored.
    """

    now_us: int
    status: str
    ending: str | None
    created_us: int
    expires_us: int
    in_progress_us: int | None = None
    closing_us: int | None = None
    paused_us: int | None = None
    lines: int = 0
    open_lines: int = 0
    own_lines: int = 0
    leases: int = 0
    approval: Cause | None = None
    cause: Cause | None = None
    planned_end_us: int | None = None
    machines: Sequence[Machine] = ()
    held_back: Sequence[str] = ()
    quoted_us: int | None = None
    has_policy: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Wait:
    """The word, the reasons, since when, and when the batch is expected to have ended with what that rests on."""

    on: str
    reasons: Sequence[str]
    since_us: int
    eta_us: int
    eta_basis: Basis


def waiting_now(facts: Facts) -> Wait | None:
    """Why the batch does not move; None when it moves or has ended."""
    cause = None if facts.status in TERMINAL else _cause(facts)
    if cause is None:
        return None
    eta_us, basis = expected_end(facts, cause.on)
    return Wait(on=cause.on, reasons=cause.reasons, since_us=cause.since_us, eta_us=eta_us, eta_basis=basis)


def expected_end(facts: Facts, on: str | None = None) -> tuple[int, Basis]:
    """When a batch that has not ended will have, and what says so. `on` is what it waits for, None when it moves.

    Never after the deadline, when it ends in any case, and never before now.
    """
    if on == "finalizing":
        return facts.now_us + (1 + facts.lines // COMPOSED_LINES_PER_S) * SECOND_US, "relaxed"
    planned_us = facts.planned_end_us
    follows_plan = on in (None, "start", "planning", "capacity", "later") and planned_us is not None
    if follows_plan and planned_us is not None and facts.now_us < planned_us < facts.expires_us:
        return planned_us, "plan"
    whole_us = facts.quoted_us if facts.quoted_us is not None else _paced_us(facts)
    if on != "deadline" and whole_us is not None:
        share = facts.open_lines / facts.lines if facts.lines else 1.0
        relaxed_us = facts.now_us + round(whole_us * share)
        if relaxed_us < facts.expires_us:
            return relaxed_us, "relaxed"
    return max(facts.now_us, facts.expires_us), "deadline"


def _paced_us(facts: Facts) -> int | None:
    """How long the whole batch takes at its pace so far; None before its first answer. For a batch that nobody could quote
    (its markets had not been heard of when it began)."""
    done = facts.lines - facts.open_lines
    if facts.in_progress_us is None or done <= 0:
        return None
    return ((facts.paused_us or facts.now_us) - facts.in_progress_us) * facts.lines // done


def _cause(facts: Facts) -> Cause | None:
    """The first that applies: what a person or the end has decided, then lines at work, then what is missing for them."""
    if facts.ending is not None or facts.status in ("finalizing", "cancelling"):
        return _ending(facts)
    if facts.status == "validating":
        return facts.approval or _validation(facts)
    if facts.paused_us is not None:
        done = f"; {facts.leases} shards with lines in flight are finished" if facts.leases else ""
        return Cause(on="paused", reasons=[f"it was paused{done}; resume it to go on"], since_us=facts.paused_us)
    if facts.open_lines <= facts.own_lines:
        return _without_workers(facts)
    if facts.cause is not None and facts.cause.is_final:
        return facts.cause
    return None if facts.leases else _unserved(facts)


def _ending(facts: Facts) -> Cause:
    since_us = facts.closing_us or facts.in_progress_us or facts.created_us
    if facts.ending is None and facts.status == "cancelling":
        reason = "it was cancelled; lines in flight may finish, then what is done is published"
    else:
        reason = f"it is {facts.ending or 'closed'}: its output and error files are composed"
    return Cause(on="finalizing", reasons=[reason], since_us=since_us)


def _validation(facts: Facts) -> Cause:
    paused = ["it was paused: no line will start before it is resumed"] if facts.paused_us is not None else []
    reasons = ["its lines are read and checked, and a place is looked for", *paused]
    return Cause(on="validation", reasons=reasons, since_us=facts.created_us)


def _without_workers(facts: Facts) -> Cause:
    if facts.open_lines:
        reason = f"the broker writes the {facts.open_lines} answers that need no engine"
    else:
        reason = "all lines are answered; the files are composed next"
    return Cause(on="finalizing", reasons=[reason], since_us=_since(facts))


def _unserved(facts: Facts) -> Cause:
    """No worker has lines of it: its machines are on their way or busy, or it has none, for a reason that the plan gave."""
    if not facts.has_policy:
        reason = "its residency policy is not stored any more: nobody permits it any place; submit it anew"
        return Cause(on="residency", reasons=[reason], since_us=_since(facts))
    rest = list(facts.cause.reasons) if facts.cause else []
    if (best := _nearest(facts.machines)) is not None:
        on: On = "capacity" if best.is_busy else "start"
        return Cause(on=on, reasons=[_on_its_way(best), *rest], since_us=best.since_us)
    if facts.held_back and (facts.cause is None or facts.cause.on == "capacity"):
        since_us = facts.cause.since_us if facts.cause else _since(facts)
        return Cause(on="start", reasons=[*facts.held_back, *rest], since_us=since_us)
    if facts.cause is not None:
        return facts.cause
    if facts.planned_end_us is not None:
        reason = "the plan has chosen where it runs; a machine is rented next"
        return Cause(on="start", reasons=[reason], since_us=_since(facts))
    reason = "the next plan decides where it runs"
    return Cause(on="planning", reasons=[reason], since_us=_since(facts))


# How far a worker is, the furthest first; one that drains, failed or is gone takes no lines any more.
_WAY = ("ready", "starting", "awaited")


def _nearest(machines: Sequence[Machine]) -> Machine | None:
    """The machine that will take lines first."""
    coming = [each for each in machines if each.worker is None or each.worker in _WAY]
    return min(coming, key=_way, default=None)


def _way(machine: Machine) -> tuple[int, bool, int, str]:
    way = _WAY.index(machine.worker) if machine.worker else len(_WAY)
    return (way, machine.is_busy, machine.since_us, machine.rental)


def _on_its_way(machine: Machine) -> str:
    if machine.worker == "ready":
        does = "works on batches before it in the queue" if machine.is_busy else "is ready and takes its first lines"
        return f"its machine {machine.rental} {does}"
    if machine.worker == "starting":
        return f"its machine {machine.rental} loads the model"
    if machine.state == "running":
        return f"its machine {machine.rental} boots; its worker has not said hello yet"
    return f"its machine {machine.rental} is being rented"


def _since(facts: Facts) -> int:
    return facts.in_progress_us or facts.created_us
