"""Named places where the process kills itself, so that chaos runs can crash it exactly there.

Off unless the setting `failpoint` names one (`BROKER_FAILPOINT=commit.in_txn` or `commit.in_txn:3` for the third time).
The kill is SIGKILL to oneself: no handler, no flush, no goodbye; just what a lost machine looks like.
"""

from __future__ import annotations

import os
import signal

NAMES = (
    "commit.in_txn",
    "commit.before_ack",
    "deliver.after_send",
    "finalise",
    "finalise.before_txn",
    "place.after_intent",
    "place.after_create",
    "upload.before_txn",
    "begin.before_txn",
    "answer.before_txn",
    "answer.after_txn",
)


class Failpoints:
    """`spec` is `name` or `name:n` (n ≥ 1, default 1), or None. Raises ValueError for an unknown name."""

    def __init__(self, spec: str | None = None) -> None:
        name, _, count = (spec or "").partition(":")
        if name and name not in NAMES:
            raise ValueError(f"failpoint {name!r} is not one of {', '.join(NAMES)}")
        self._name = name
        self._left = int(count or 1)

    def reached(self, name: str) -> None:
        """Die here if this is the place and the time."""
        if name != self._name:
            return
        self._left -= 1
        if self._left <= 0:
            os.kill(os.getpid(), signal.SIGKILL)
