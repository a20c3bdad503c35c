"""Where a machine learns that it is about to be taken away.

The one source so far: `notice.json` beside the configuration, `{"at": epoch seconds}`, written by whoever knows
(a market, a host's own hook). The sources of clouds (their metadata addresses) will be further functions of this shape.
"""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path

from workers.agent.log import event

_LOOK_S = 0.25


async def wait_for_notice(folder: Path) -> float:
    """Return, as soon as an interruption is announced, its moment on the monotonic clock."""
    path = folder / "notice.json"
    told: str | None = None
    while True:
        await asyncio.sleep(_LOOK_S)
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            continue
        at = read_notice(text)
        if at is not None:
            left = at - time.time()
            event("notice.seen", in_s=round(left, 3), source=path.name)
            return time.monotonic() + left
        if text != told:  # half-written files become whole; say what is wrong once a version
            event("notice.unreadable", source=path.name, content=text[:200])
            told = text


def read_notice(text: str) -> float | None:
    """The announced moment in epoch seconds, or None when `text` does not hold one."""
    try:
        notice = json.loads(text)
    except ValueError:
        return None
    at = notice.get("at") if isinstance(notice, dict) else None
    return float(at) if isinstance(at, int | float) and not isinstance(at, bool) else None
