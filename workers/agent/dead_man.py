"""The dead man's switch: a machine that nobody asks for any more ends itself, and its bill with it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from workers.agent.errors import Forgotten


async def watch_dead_man(dead_man_s: float, last_answer_at: Callable[[], float]) -> None:
    """Raise Forgotten once `dead_man_s` have passed since the broker's last answer. 0: never."""
    if dead_man_s <= 0:
        await asyncio.get_running_loop().create_future()
    while True:
        left = last_answer_at() + dead_man_s - time.monotonic()
        if left <= 0:
            raise Forgotten(f"no answer from the broker for {dead_man_s} s")
        await asyncio.sleep(left)
