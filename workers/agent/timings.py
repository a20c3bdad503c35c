"""How long each phase of coming up took on this machine, by its monotonic clock; told to the broker with each heartbeat.

`pull_s` is the image's, noted by the host before the agent was there; `download_s`, `load_s` and `warm_up_s` are what
the engine itself says in its log, by the broker's patterns; `start_s` is from starting the engine until it is healthy,
`first_line_s` from then to the first answer.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

from workers.agent.log import event

PULLED = "pull.json"


class Timings:
    """What is known so far, in seconds."""

    def __init__(self, phases: Mapping[str, str]) -> None:
        self._patterns = {f"{name}_s": re.compile(pattern) for name, pattern in phases.items()}
        self._ready_at: float | None = None
        self.known: dict[str, float] = {}

    def read(self, rows: Iterable[str]) -> None:
        """Rows that the engine wrote."""
        for row in rows:
            for name, pattern in self._patterns.items():
                if found := pattern.search(row):
                    self.known[name] = float(found[1])

    def started(self, after_s: float) -> None:
        """The engine is healthy. A restart after a crash says nothing of a fresh machine."""
        self.known.setdefault("start_s", round(after_s, 3))
        self._ready_at = self._ready_at or time.monotonic()

    def answered(self) -> None:
        """A line is answered; only the first counts."""
        if self._ready_at is not None and "first_line_s" not in self.known:
            self.known["first_line_s"] = round(time.monotonic() - self._ready_at, 3)

    def read_pull(self, folder: Path) -> None:
        """The host's note on the image, where it left one."""
        note = folder / PULLED
        if not note.exists():
            return
        try:
            self.known["pull_s"] = max(0.0, json.loads(note.read_text(encoding="utf-8"))["pull_ms"] / 1000)
        except (OSError, ValueError, KeyError, TypeError) as unreadable:
            event("timings.no_pull", reason=repr(unreadable))
