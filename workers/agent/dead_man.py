"""The dead man's switch: a machine that nobody asks for any more ends itself, and its bill with it.

On a whole machine of our own there is a second switch outside of this process (it may hang, or never come up): a timer that
powers the machine off when the file that `tell_alive` touches has become too old.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

from workers.agent.errors import Forgotten
from workers.agent.log import event

_TELL_S = 5.0


async def watch_dead_man(dead_man_s: float, last_answer_at: Callable[[], float]) -> None:
    """Raise Forgotten once `dead_man_s` have passed since the broker's last answer. 0: never."""
    if dead_man_s <= 0:
        await asyncio.get_running_loop().create_future()
    while True:
        left = last_answer_at() + dead_man_s - time.monotonic()
        if left <= 0:
            raise Forgotten(f"no answer from the broker for {dead_man_s} s")
        await asyncio.sleep(left)


async def tell_alive(path: Path, last_answer_at: Callable[[], float], *, every_s: float = _TELL_S) -> None:
    """Touch `path` whenever the broker has answered since the last look. A file that cannot be touched is told once."""
    told, complaint = last_answer_at(), None
    while True:
        await asyncio.sleep(every_s)
        if last_answer_at() == told:
            continue
        told = last_answer_at()
        try:
            await asyncio.to_thread(path.touch)
        except OSError as error:
            if complaint is None:
                complaint = str(error)
                event("alive.untold", path=str(path), reason=complaint)
