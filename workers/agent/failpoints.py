"""Named places where the agent kills itself, so that chaos runs can lose a machine exactly there."""

from __future__ import annotations

import os
import signal

from workers.agent.errors import BadConfig

NAMES = ("agent.before_put", "agent.after_put")


class Failpoints:
    """`spec` is `name` or `name:n` (n ≥ 1, default 1), or None. Raises BadConfig for an unknown name or a bad count."""

    def __init__(self, spec: str | None = None) -> None:
        name, _, count = (spec or "").partition(":")
        if name and name not in NAMES:
            raise BadConfig(f"failpoint {name!r} is not one of {', '.join(NAMES)}")
        if count and not (count.isdigit() and int(count) > 0):
            raise BadConfig(f"failpoint {spec!r}: {count!r} is not a positive count")
        self._name = name
        self._left = int(count or 1)

    def reached(self, name: str) -> None:
        """Die here if this is the place and the time."""
        if name != self._name:
            return
        self._left -= 1
        if self._left <= 0:
            os.kill(os.getpid(), signal.SIGKILL)
