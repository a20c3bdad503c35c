"""The exit codes of every command, and which one a batch's or a quote's outcome deserves."""

from __future__ import annotations

from typing import Any

OK = 0
ERROR = 1
USAGE = 2
FAILED_LINES = 3
EXPIRED = 4
CANCELLED = 5
OVER_BUDGET = 6
INFEASIBLE = 7
INTERRUPTED = 130

# `waiting_on` words. A batch that was refused at validation for the same reason has it as `infeasible_WORD`.
MONEY = frozenset({"budget", "price_ceiling"})
INFEASIBLE_CODE = "infeasible_"
REJECTED_CODE = "approval_rejected"  # by the second person whom a batch of that cost needs


class Failure(Exception):
    """A command cannot go on. The message says what was wrong, where, and how to mend it; `code` is the exit code."""

    def __init__(self, message: str, code: int = ERROR) -> None:
        super().__init__(message)
        self.code = code


class ReaderLeft(Exception):
    """Whoever read the output has what it wanted (`broker list | head`). Not an OSError: of those click makes exit code 1."""


def of_waiting(waiting_on: str | None) -> int:
    """The code for work that cannot be placed: money is 6, anything else that nothing feasible remains for is 7."""
    return OVER_BUDGET if waiting_on in MONEY else INFEASIBLE


def of_batch(batch: dict[str, Any]) -> int:
    """The code for a batch as it stands. One that is still under way is 0.

    >>> of_batch({"status": "completed", "x_broker": {"counts": {"failed": 2}}})
    3
    """
    status = batch["status"]
    if status == "expired":
        return EXPIRED
    if status in ("cancelled", "cancelling"):
        return CANCELLED
    if status == "failed":
        return _of_refusal(batch)
    return FAILED_LINES if status == "completed" and batch["x_broker"]["counts"]["failed"] else OK


def _of_refusal(batch: dict[str, Any]) -> int:
    """A batch that failed as a whole: for money, for want of a place, or because lines of its file are bad."""
    codes = {error["code"] for error in (batch.get("errors") or {}).get("data", [])}
    if REJECTED_CODE in codes:
        return OVER_BUDGET
    words = {code.removeprefix(INFEASIBLE_CODE) for code in codes if code.startswith(INFEASIBLE_CODE)}
    return of_waiting(words.pop()) if words else FAILED_LINES
