"""Where a machine learns that it is about to be taken away, and the one event that comes of it.

`notice.json` beside the configuration, `{"at": epoch seconds}`, is written by whoever knows (a market, a host's own hook).
On a cloud's machine its metadata service is asked as well (`metadata.py`). Whatever speaks first is the notice; what is
said later only counts when it leaves less time.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path

from workers.agent.log import event
from workers.agent.metadata import Announced, Ask, Unreadable

_LOOK_S = 0.25
# AWS asks to look every 5 s; the seconds until we look are lost for the drain.
_ASK_S = 2.0
_SAME_S = 1.0


async def notices(folder: Path, ask: Ask | None, *, ask_s: float = _ASK_S) -> AsyncIterator[float]:
    """Moments on the monotonic clock at which the machine may end: the first announced, then only earlier ones."""
    file = _File(folder / "notice.json")
    earliest: float | None = None
    complaint: str | None = None
    asked_at = float("-inf")
    while True:
        announced = file.look()
        if announced is None and ask is not None and time.monotonic() - asked_at >= ask_s:
            asked_at = time.monotonic()
            try:
                announced, complaint = await ask(time.time()), None
            except Unreadable as error:
                if str(error) != complaint:  # a service that is away for hours is one event
                    complaint = str(error)
                    event("notice.unreadable", source="metadata", content=complaint)
        if announced is not None:
            left = announced.at - time.time()
            at = time.monotonic() + left
            if earliest is None or at < earliest - _SAME_S:
                earliest = at
                event("notice.seen", in_s=round(left, 3), source=announced.kind)
                yield at
        await asyncio.sleep(_LOOK_S)


class _File:
    """`notice.json`, which may be written in pieces: what is wrong with it is said once a version."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._told: str | None = None

    def look(self) -> Announced | None:
        try:
            text = self._path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return None
        at = read_notice(text)
        if at is not None:
            return Announced(at, self._path.name)
        if text != self._told:
            event("notice.unreadable", source=self._path.name, content=text[:200])
            self._told = text
        return None


def read_notice(text: str) -> float | None:
    """The announced moment in epoch seconds, or None when `text` does not hold one."""
    try:
        notice = json.loads(text)
    except ValueError:
        return None
    at = notice.get("at") if isinstance(notice, dict) else None
    return float(at) if isinstance(at, int | float) and not isinstance(at, bool) else None
