"""Planning in the test's own process."""

from __future__ import annotations

import asyncio

from broker.control.solver_process import read_plan
from solver.__main__ import answer
from solver.types import Plan, Snapshot, encode


class PlanningHere:
    """What `python -m solver` answers to the same line, without the half second that each new process needs to start.

    The process itself, its end and its being killed are `tests/broker/control/test_solver_process.py`'s.
    """

    async def solve(self, snapshot: Snapshot) -> Plan:
        return read_plan(await asyncio.to_thread(answer, encode(snapshot), "program"))
