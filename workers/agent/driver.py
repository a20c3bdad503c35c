"""Keeps the engine busy: starts lines, sorts their answers, and finds out what a broken one means.

All decisions are elsewhere and pure (pool, answers, concurrency); here are the sockets and the tasks. One HTTP session,
one task a request, bodies sent as the bytes that they were read as.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field

import aiohttp

from workers.agent.answers import Again, Fault, Finished, Misconfigured, judge
from workers.agent.concurrency import Load, steer
from workers.agent.engine import Engine
from workers.agent.errors import EngineFailed
from workers.agent.leases import HeldLease
from workers.agent.lines import Line
from workers.agent.log import event
from workers.agent.pool import Pool
from workers.agent.spec import EngineSpec

# Below the 5 s after which common servers close an idle connection: a request must not meet a socket that just closed.
IDLE_CONNECTION_S = 2.0
_STEER_S = 1.0
_LONGEST_PAUSE_S = 5.0
# After a crash, requests still open get this long to notice it.
_NOTICE_CRASH_S = 2.0
# So many crashes without a line in the engine, or before its first answer ever, are the machine's fault, not a line's.
_CRASHES_OF_ITS_OWN = 3
# Refused for so long without one answer: ask whether the engine is well.
_DOUBT_S = 30.0


@dataclass(slots=True, eq=False)
class Driver:
    """`run` works until cancelled; it raises EngineFailed. `on_finished` is called whenever a line got its end.

    `has_room` says whether more finished lines can be kept. `counters` are what commits report; the reader takes them.
    """

    spec: EngineSpec
    engine: Engine
    session: aiohttp.ClientSession
    pool: Pool
    on_finished: Callable[[], None]
    has_room: Callable[[], bool]
    counters: Counter[str] = field(default_factory=Counter)
    durations: deque[float] = field(default_factory=lambda: deque(maxlen=200))
    metrics: dict[str, float] = field(default_factory=dict)
    limit: int = 1
    accepts: bool = True
    _tasks: dict[asyncio.Task[None], tuple[HeldLease, Line]] = field(default_factory=dict)
    _faults: list[tuple[HeldLease, Line, Fault]] = field(default_factory=list)
    _wake: asyncio.Event = field(default_factory=asyncio.Event)
    _busy_since: float = 0.0
    _paused_until: float = 0.0
    _pause_s: float = 0.0
    _refused: int = 0
    _refused_since: float | None = None
    _answered: int = 0
    _crashes: int = 0
    _answered_at_crash: int = 0
    _is_in_doubt: bool = False
    _is_hung: bool = False
    _failure: BaseException | None = None

    def wake(self) -> None:
        """Something changed that may let a line start: a lease came or was renewed, a part went out."""
        self._wake.set()

    async def run(self) -> None:
        """Start lines and settle faults, for ever. The engine has been started."""
        self.limit = self.spec.concurrency_start
        steering = asyncio.create_task(self._steer())
        exits = asyncio.create_task(self._wake_on_exit())
        try:
            while True:
                self._wake.clear()
                if self._failure is not None:
                    raise self._failure
                if self._faults or self._is_in_doubt or (self.engine.has_exited and self.accepts):
                    await self._settle()
                    exits.cancel()
                    exits = asyncio.create_task(self._wake_on_exit())
                self._fill()
                await self._sleep()
        finally:
            for task in (steering, exits, *self._tasks):
                task.cancel()

    async def quiesce(self, until: Callable[[], float]) -> None:
        """Start nothing more; wait for what is in the engine until `until()`, which may move; then drop it."""
        self.accepts = False
        while self._tasks and (left := until() - time.monotonic()) > 0:
            await asyncio.wait(set(self._tasks), timeout=min(left, 0.25), return_when=asyncio.FIRST_COMPLETED)
        for lease, line in await self._drop_requests():
            self.pool.put_back(lease, line)

    def _fill(self) -> None:
        """Start lines up to the limit."""
        while self._may_start() and (chosen := self.pool.start(time.monotonic())) is not None:
            if not self._tasks:
                self._busy_since = time.monotonic()
            task = asyncio.create_task(self._send(*chosen))
            self._tasks[task] = chosen
            task.add_done_callback(self._end)

    def _may_start(self) -> bool:
        return (
            self.accepts
            and len(self._tasks) < self.limit
            and not self._faults
            and time.monotonic() >= self._paused_until
            and self.has_room()
        )

    async def _sleep(self) -> None:
        """Until woken, or until a pause ends."""
        pause = self._paused_until - time.monotonic()
        try:
            await asyncio.wait_for(self._wake.wait(), pause if pause > 0 else None)
        except TimeoutError:
            return

    def _end(self, task: asyncio.Task[None]) -> None:
        self._tasks.pop(task, None)
        if not self._tasks:
            self.counters["busy_ms"] += round((time.monotonic() - self._busy_since) * 1000)
        if not task.cancelled():
            self._failure = self._failure or task.exception()
        self._wake.set()

    async def _send(self, lease: HeldLease, line: Line) -> None:
        """One request, and what its answer means."""
        self.counters["requests"] += 1
        began, answered_before = time.monotonic(), self._answered
        url = self.engine.base_url + lease.endpoint
        verdict: Finished | Again | Fault | Misconfigured
        try:
            async with self.session.post(
                url,
                data=line.body,
                headers={"Content-Type": "application/json", **self.spec.headers},
                timeout=aiohttp.ClientTimeout(total=self.spec.request_timeout_s),
                allow_redirects=False,
            ) as answer:
                body, headers = await answer.read(), answer.headers
                verdict = judge(line, answer.status, body, headers.get("x-request-id"), headers.get("Retry-After"))
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            verdict = Again(f"no connection: {error}")
        except TimeoutError:
            verdict = Fault("timeout", f"no answer within {self.spec.request_timeout_s} s")
            # silence all over, while several were in the engine: it hangs, and no single line is to blame
            self._is_hung = self._is_hung or (self._answered == answered_before and len(self._tasks) > 1)
        except aiohttp.ClientError as error:
            verdict = Fault("engine_error", f"the connection broke: {type(error).__name__}: {error}")
        self._apply(lease, line, verdict, began)

    def _apply(
        self, lease: HeldLease, line: Line, verdict: Finished | Again | Fault | Misconfigured, began: float
    ) -> None:
        now = time.monotonic()
        if isinstance(verdict, Finished):
            self._answered += 1
            self._pause_s, self._refused_since = 0.0, None
            self.durations.append(now - began)
            self.pool.finish(lease, line, verdict, now)
            self.on_finished()
        elif isinstance(verdict, Fault):
            self._faults.append((lease, line, verdict))  # settled by `run`: was it the line, or the engine?
        elif isinstance(verdict, Again):
            self.pool.put_back(lease, line)
            self._pause(now, verdict)
        else:
            self.pool.put_back(lease, line)
            self._failure = EngineFailed(verdict.message)

    def _pause(self, now: float, verdict: Again) -> None:
        """Hold back for a while, doubling; the engine's own wish counts when it names one."""
        self._refused += 1
        self._refused_since = self._refused_since or now
        if now >= self._paused_until:
            self._pause_s = min(_LONGEST_PAUSE_S, 2 * self._pause_s or 0.05)
            self._paused_until = now + max(self._pause_s, min(verdict.after_s or 0.0, 60.0))
        if now - self._refused_since > _DOUBT_S:
            self._is_in_doubt, self._refused_since = True, None

    async def _settle(self) -> None:
        """After a fault: the engine lives, and each line answers for itself; or it is dead, and any may be to blame."""
        if self._is_hung:
            event("engine.hung", in_flight=len(self._tasks))
            await self.engine.kill()
        is_alive = not self._is_hung and not self.engine.has_exited and await self.engine.survived()
        self._is_in_doubt = self._is_hung = False
        if is_alive:
            faults, self._faults = self._faults, []
            for lease, line, fault in faults:
                self.pool.charge(lease, line, fault, time.monotonic())
            self.on_finished()
            return
        if self._tasks:
            await asyncio.wait(set(self._tasks), timeout=_NOTICE_CRASH_S)
        dropped = await self._drop_requests()
        victims = [(lease, line) for lease, line, _ in self._faults] + dropped
        self._faults = []
        self._count_crash(len(victims))
        self.pool.crash(
            victims, f"the engine died (status {self.engine.exit_status}) with the line in it", time.monotonic()
        )
        self.on_finished()
        if self.accepts:
            await self.engine.start()

    def _count_crash(self, victims: int) -> None:
        """Raises EngineFailed before lines would be blamed for a machine that does not work."""
        event("engine.crashed", status=self.engine.exit_status, lines=victims, answered=self._answered)
        if self._answered > self._answered_at_crash:
            self._crashes = 0
        self._answered_at_crash = self._answered
        if victims and self._answered:
            return  # bounded by the lines' own attempts
        self._crashes += 1
        if self._crashes >= _CRASHES_OF_ITS_OWN:
            raise EngineFailed(
                f"the engine died {self._crashes} times (status {self.engine.exit_status}) with "
                f"{victims} lines in it and {self._answered} answered so far: {self.engine.last_words}"
            )

    async def _drop_requests(self) -> list[tuple[HeldLease, Line]]:
        """Cancel what is open; the lines that had no verdict yet."""
        open_requests = dict(self._tasks)
        for task in open_requests:
            task.cancel()
        if open_requests:
            await asyncio.wait(open_requests)
        return [chosen for task, chosen in open_requests.items() if task.cancelled()]

    async def _steer(self) -> None:
        """Once a second: look at the engine's queue and set the limit."""
        preempted_before: float | None = None
        while True:
            await asyncio.sleep(_STEER_S)
            if self.engine.has_exited:
                continue
            self.metrics = await self.engine.metrics()
            preempted = self.metrics.get("preemptions_total", 0.0)
            load = Load(
                in_flight=len(self._tasks),
                running=self.metrics.get("running"),
                waiting=self.metrics.get("waiting"),
                kv_usage=self.metrics.get("kv_usage"),
                preempted=0.0 if preempted_before is None else preempted - preempted_before,
                refused=self._refused,
            )
            preempted_before, self._refused = preempted, 0
            limit = steer(self.limit, load, start=self.spec.concurrency_start, maximum=self.spec.concurrency_max)
            if limit != self.limit:
                event("driver.steered", limit=limit, before=self.limit, waiting=load.waiting, running=load.running)
                self.limit = limit
                self._wake.set()

    async def _wake_on_exit(self) -> None:
        await self.engine.wait_exited()
        self._wake.set()
