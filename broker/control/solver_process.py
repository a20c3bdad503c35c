"""The planner in a child process, so that a solve that never ends can be killed (contract C4).

HiGHS knows no deterministic work limit and may overshoot its own clock (ERGO-Code/HiGHS #2226), so the only clock is
here: SIGKILL after `timeout_s`, then the greedy stage in a thread, marked `stopped_by: clock`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys

import msgspec
import structlog

from solver import types
from solver.errors import SolverError
from solver.plan import solve
from solver.types import Plan, Snapshot

log = structlog.get_logger()
# A plan is one line; asyncio's default of 64 KiB would cut it.
MOST_BYTES = 64 * 1024 * 1024
# The child is gone, or its line is longer than MOST_BYTES and would be read as the next question's.
LOST = (BrokenPipeError, ConnectionResetError, asyncio.IncompleteReadError, asyncio.LimitOverrunError)


class SolverProcess:
    """A long-lived `python -m solver`: one snapshot a line in, one plan a line out. It ends when its input closes."""

    def __init__(self, *, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._child: asyncio.subprocess.Process | None = None
        self._turn = asyncio.Lock()

    async def solve(self, snapshot: Snapshot) -> Plan:
        """The plan for `snapshot`: from the child, or, when it was too slow or died, from the greedy stage.

        Raises SolverError when the snapshot itself is bad.
        """
        async with self._turn:
            try:
                answer = await asyncio.wait_for(self._ask(types.encode(snapshot)), self._timeout_s)
            except TimeoutError:
                log.warning(
                    "solver.killed", after_s=self._timeout_s, works=len(snapshot.works), offers=len(snapshot.offers)
                )
                await self._kill()
            except LOST as lost:
                log.warning("solver.died", error=repr(lost), status=self._child and self._child.returncode)
                await self._kill()
            except asyncio.CancelledError:
                await self._kill()  # its answer would be read as the next question's
                raise
            else:
                return read_plan(answer)
        fallback = await asyncio.to_thread(solve, snapshot, stage="greedy")
        return msgspec.structs.replace(fallback, stopped_by="clock")

    async def close(self) -> None:
        await self._kill()

    async def _ask(self, line: bytes) -> bytes:
        child = await self._living()
        assert child.stdin and child.stdout
        child.stdin.write(line + b"\n")
        await child.stdin.drain()
        return await child.stdout.readuntil(b"\n")

    async def _living(self) -> asyncio.subprocess.Process:
        if self._child is None or self._child.returncode is not None:
            self._child = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "solver",
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                start_new_session=True,
                limit=MOST_BYTES,
            )
        return self._child

    async def _kill(self) -> None:
        child, self._child = self._child, None
        if child is None:
            return
        if child.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
        if child.stdout is not None:
            with contextlib.suppress(ConnectionResetError):
                await child.stdout.read()  # a pipe that is full is not read, and wait() waits for its end
        await child.wait()


class _Refusal(msgspec.Struct):
    code: str
    message: str


class _Refused(msgspec.Struct):
    error: _Refusal


def read_plan(answer: bytes) -> Plan:
    """The plan in a line of `python -m solver`. Raises SolverError when the line says what is wrong with the snapshot."""
    if answer.startswith(b'{"error"'):
        refused = msgspec.json.decode(answer, type=_Refused)
        raise SolverError(f"{refused.error.code}: {refused.error.message}")
    return msgspec.json.decode(answer, type=Plan)
