"""The driver by itself, where a defect of the agent must be played."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import aiohttp
import pytest

from tests.workers.test_exchange import spec
from workers.agent.driver import Driver
from workers.agent.engine import Engine
from workers.agent.exchange import Answer, Outcome, Pending
from workers.agent.leases import HeldLease
from workers.agent.lines import Line
from workers.agent.pool import Pool


class Hands:
    """An exchange that hands over what it is given."""

    def __init__(self, outcome: Outcome) -> None:
        self.outcome = outcome

    def post(self, url: str, body: bytes, on_end: Callable[[Outcome], None]) -> Pending:
        return asyncio.get_running_loop().call_soon(on_end, self.outcome)

    def close(self) -> None: ...


@pytest.mark.parametrize(
    "outcome",
    [
        RuntimeError("a defect of ours"),
        Answer(200, None, None, None),  # type: ignore[arg-type]  # a defect that shows only when the answer is judged
    ],
)
async def test_a_defect_ends_the_driver_and_never_leaves_a_line_in_flight_for_ever(
    outcome: Outcome, tmp_path: Path
) -> None:
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)
    pool = Pool(max_attempts=3)
    lease = HeldLease("s", 1, "n", 60.0, "/v1/completions", "/parts", time.monotonic())
    lease.admit([Line(0, "c", b"{}", 8)], {}, alone_from=2)
    pool.add(lease, time.monotonic())
    engine_spec = spec("http://127.0.0.1:1")
    async with aiohttp.ClientSession() as session:
        driver = Driver(
            spec=engine_spec,
            engine=Engine(engine_spec, session, tmp_path),
            exchange=Hands(outcome),
            pool=pool,
            on_finished=lambda: None,
            has_room=lambda: True,
        )
        with pytest.raises((RuntimeError, AttributeError)):
            await asyncio.wait_for(driver.run(), 20)
