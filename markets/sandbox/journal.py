"""The sandbox's only truth: an append-only file of events, one JSON object a line, on the disk before anyone hears of it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Event = dict[str, Any]


class JournalCorrupt(Exception):
    """A line of the journal that is not the last cannot be read."""


class Journal:
    """One writer (the process that holds the sandbox's lock)."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._cut_torn_tail()
        self._descriptor = os.open(file, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)

    def append(self, event: Event) -> None:
        """Write one event; it is durable when this returns."""
        os.write(self._descriptor, json.dumps(event, separators=(",", ":")).encode() + b"\n")
        os.fsync(self._descriptor)

    def events(self) -> Iterator[Event]:
        """All events from the first. Raises JournalCorrupt naming the line."""
        return read_events(self._file)

    def close(self) -> None:
        os.close(self._descriptor)

    def _cut_torn_tail(self) -> None:
        # A crash in the middle of a write leaves a line without its end: nobody was told, so it did not happen.
        if not self._file.exists():
            return
        content = self._file.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            os.truncate(self._file, whole)


def read_events(file: Path) -> Iterator[Event]:
    """The events in `file`, first to last, for anyone who wants to check. Raises JournalCorrupt naming the line."""
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            try:
                event: Event = json.loads(line)
            except ValueError as error:
                raise JournalCorrupt(f"{file} line {number}: {error}; restore the file from a copy") from error
            yield event
