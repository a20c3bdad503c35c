"""The exit codes that scripts rely on."""

from __future__ import annotations

import os
import subprocess
from typing import Any

import pytest

from broker.cli import exits
from tests.support.command_line import BROKER, quick


def batch(status: str, *codes: str, failed: int = 0) -> dict[str, Any]:
    errors = {"data": [{"code": code, "message": "", "line": None} for code in codes]} if codes else None
    return {"status": status, "errors": errors, "x_broker": {"counts": {"failed": failed}}}


@pytest.mark.parametrize(
    ("ended", "code"),
    [
        (batch("completed"), 0),
        (batch("in_progress", failed=3), 0),  # under way: not judged yet
        (batch("completed", failed=1), 3),
        (batch("failed", "duplicate_custom_id"), 3),  # the file's own lines are bad
        (batch("expired", failed=2), 4),  # the deadline is what a script must hear of first
        (batch("cancelled"), 5),
        (batch("cancelling"), 5),
        (batch("failed", "infeasible_budget"), 6),
        (batch("failed", "infeasible_price_ceiling", "infeasible_price_ceiling"), 6),
        (batch("failed", "approval_rejected"), 6),  # feasible, but a second person would not spend that
        (batch("failed", "infeasible_residency"), 7),
        (batch("failed", "infeasible_deadline"), 7),
    ],
)
def test_the_exit_code_tells_how_a_batch_ended(ended: dict[str, Any], code: int) -> None:
    assert exits.of_batch(ended) == code


@pytest.mark.parametrize(
    ("waiting_on", "code"), [("budget", 6), ("price_ceiling", 6), ("residency", 7), ("capacity", 7), (None, 7)]
)
def test_the_exit_code_of_a_quote_tells_money_from_everything_else(waiting_on: str | None, code: int) -> None:
    assert exits.of_waiting(waiting_on) == code


def test_a_reader_that_has_left_is_exit_code_141_and_no_complaint() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as nobody:
        done = subprocess.run([*BROKER, "completion", "bash"], stdout=nobody, stderr=subprocess.PIPE, check=False)
    assert (done.returncode, done.stderr) == (141, b"")


def test_a_status_that_no_batch_can_have_is_a_slip_of_the_pen() -> None:
    """It was an empty list, which says that there is no such batch."""
    done = quick("list", "--status", "complete")
    assert done.returncode == exits.USAGE
    assert "'complete': want one of" in done.stderr
