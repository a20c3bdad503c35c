"""The loops' clockwork: APScheduler sets each loop's event at its interval, and nothing else.

The steps themselves run in tasks of our own, because `AsyncIOScheduler.shutdown(wait=True)` cancels running coroutines
(measured, APScheduler 3.11.3): a step that is in the middle of renting a machine must be let finish.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

import structlog
from apscheduler.schedulers.asyncio import AsyncIOScheduler
from sqlalchemy.exc import DBAPIError

from broker.database import UNAVAILABLE
from broker.leadership import Deposed
from jobs.errors import JobsError
from ledger.errors import LedgerError
from markets.cadence import JITTER
from markets.errors import MarketsError
from solver.errors import SolverError

log = structlog.get_logger()
Step = Callable[[], Awaitable[None]]

# What a step may meet in life; anything else is a defect: logged as one, counted, and the loop goes on.
EXPECTED = (MarketsError, JobsError, LedgerError, SolverError, DBAPIError, OSError, TimeoutError)
# How soon a loop looks again whether the database is back.
OUTAGE_RETRY_S = 1.0


@dataclass
class LoopState:
    """What /readyz and /metrics tell of a loop. Times are of the monotonic clock. `stands_by`: another broker runs it;
    `is_cut_off`: the database was away when it ran last."""

    every_s: float
    runs: int = 0
    failures: int = 0
    defects: int = 0
    seconds: float = 0.0
    last_end: float | None = None
    last_error: str | None = None
    stands_by: bool = False
    is_cut_off: bool = False


@dataclass
class Loops:
    """Named steps, each run at its interval or when its event is set, never twice at once.

    `stands_by` says of a loop whether another broker runs it now. `steps` may be replaced: the next run is of the new.
    """

    steps: Mapping[str, tuple[float, Step]]
    wake: Mapping[str, asyncio.Event]
    stands_by: Callable[[str], bool] = lambda _loop: False
    states: dict[str, LoopState] = field(default_factory=dict)
    _tasks: dict[str, asyncio.Task[None]] = field(default_factory=dict)
    _scheduler: AsyncIOScheduler | None = None
    _stopping: bool = False

    def start(self) -> None:
        defaults = {"max_instances": 1, "coalesce": True, "misfire_grace_time": None}
        self._scheduler = AsyncIOScheduler(timezone="UTC", job_defaults=defaults)
        for name, (every_s, _) in self.steps.items():
            self.states[name] = LoopState(every_s)
            self._spawn(name)
            # markets are not all asked in the same moment; the other loops keep their beat
            jitter = round(every_s * JITTER) if name.partition(":")[1] else None
            self._scheduler.add_job(self.wake[name].set, "interval", seconds=every_s, id=name, jitter=jitter or None)
            self.wake[name].set()
        self._scheduler.start()

    async def stop(self, *, within_s: float) -> None:
        """Start no step any more; give the running ones `within_s` to finish, then cancel them."""
        self._stopping = True
        if self._scheduler:
            self._scheduler.shutdown(wait=False)
        for event in self.wake.values():
            event.set()
        tasks = list(self._tasks.values())
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=within_s)
            for task in late:
                log.warning("loop.cancelled", loop=task.get_name(), after_s=within_s)
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    def _spawn(self, name: str) -> None:
        task = asyncio.create_task(self._run(name), name=name)
        self._tasks[name] = task
        task.add_done_callback(lambda done: self._ended(name, done))

    def _ended(self, name: str, task: asyncio.Task[None]) -> None:
        """A task ends by itself only through a defect: show it, then go on at the loop's next tick.

        One that was cancelled, and not by `stop`, is a defect, too: what it awaited was cancelled under it.
        """
        if self._stopping:
            return
        defect = asyncio.CancelledError("cancelled from within") if task.cancelled() else task.exception()
        self.states[name].defects += 1
        self.states[name].last_error = repr(defect)
        log.error("loop.defect", loop=name, exc_info=defect)
        self._spawn(name)

    async def _run(self, name: str) -> None:
        event, state = self.wake[name], self.states[name]
        while not self._stopping:
            await event.wait()
            event.clear()
            if self._stopping:
                return
            state.stands_by = self.stands_by(name)
            if state.stands_by:
                state.last_end = None  # what another runs is not late here
                continue
            await self._step(name, state)

    async def _step(self, name: str, state: LoopState) -> None:
        started = time.monotonic()
        _, step = self.steps[name]
        try:
            await step()
        except Deposed as deposed:
            log.info("loop.deposed", loop=name, mine=deposed.mine, current=deposed.current)
        except UNAVAILABLE as failure:
            self._cut_off(name, state, failure)
        except EXPECTED as failure:
            state.failures += 1
            state.last_error = f"{type(failure).__name__}: {failure}"
            log.warning("loop.failed", loop=name, error=state.last_error)
        else:
            state.last_error, state.is_cut_off = None, False
        state.runs += 1
        state.last_end = time.monotonic()
        state.seconds += state.last_end - started

    def _cut_off(self, name: str, state: LoopState, failure: Exception) -> None:
        """Said once for each outage; the loop looks again soon. Whatever it was writing is there whole, or not at all."""
        if not state.is_cut_off:
            log.warning("loop.no_database", loop=name, error=f"{type(failure).__name__}: {failure}")
        state.is_cut_off = True
        state.failures += 1
        state.last_error = f"the database is away: {type(failure).__name__}"
        asyncio.get_running_loop().call_later(OUTAGE_RETRY_S, self.wake[name].set)
