"""One JSON line on standard error for each change of state. Never prompts, never credentials."""

from __future__ import annotations

import json
import sys
import time


def event(name: str, **facts: object) -> None:
    """Write `{"event": name, "at_us": …, **facts}`; values that JSON does not know are written as text."""
    record = {"event": name, "at_us": time.time_ns() // 1000, **facts}
    print(json.dumps(record, default=str), file=sys.stderr, flush=True)
