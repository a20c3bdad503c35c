"""Keeps the engine busy: starts lines, sorts their answers, and finds out what a broken one means.

All decisions are elsewhere and pure (pool, answers, concurrency); how the bytes travel is the exchange's. The common
case is short: an answer comes, its line is kept, the next line goes out, and no task was woken. `run` wakes for the rest.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial

from workers.agent.answers import Again, Fault, Finished, Misconfigured, judge, seconds_until
from workers.agent.concurrency import Load, steer
from workers.agent.engine import Engine
from workers.agent.errors import EngineFailed
from workers.agent.exchange import Answer, Exchange, NoAnswer, Outcome, Pending
from workers.agent.leases import HeldLease
from workers.agent.lines import Line
from workers.agent.log import event
from workers.agent.outage import Outage
from workers.agent.pace import Pace
from workers.agent.pool import Pool
from workers.agent.spec import EngineSpec

_STEER_S = 1.0
# So often in the first seconds after the engine was empty: its batch is still more hole than batch.
_FAST_STEER_S = 0.25
_FILLING_S = 4.0
# And so seldom once the limit has stayed as it is for a while: vLLM spends 10 ms and more on a page of metrics.
_CALM_STEER_S = 4.0
_CALM_AFTER = 5
_LONGEST_PAUSE_S = 5.0
# After a crash, requests still open get this long to notice it.
_NOTICE_CRASH_S = 2.0
# So many crashes without a line in the engine, or before its first answer ever, are the machine's fault, not a line's.
_CRASHES_OF_ITS_OWN = 3
# Refused for so long without one answer: ask whether the engine is well.
_DOUBT_S = 30.0
# A token endpoint: its outages last minutes, and its quota may be used up for the month. Then the broker looks elsewhere.
_LONGEST_ENDPOINT_PAUSE_S = 30.0


@dataclass(slots=True, eq=False)
class _Request:
    """A line in the engine. `answered_before`: how many had been answered when it was sent."""

    lease: HeldLease
    line: Line
    began: float
    answered_before: int
    pending: Pending | None = None


@dataclass(slots=True, eq=False)
class Driver:
    """`run` works until cancelled; it raises EngineFailed. `on_finished` is called whenever a line got its end.

    `has_room` says whether more finished lines can be kept. `counters` are what commits report; the reader takes them.
    `clock` tells seconds that only grow; `later` calls after so many of them (default: the loop's).
    """

    spec: EngineSpec
    engine: Engine
    exchange: Exchange
    pool: Pool
    on_finished: Callable[[], None]
    has_room: Callable[[], bool]
    counters: Counter[str] = field(default_factory=Counter)
    durations: deque[float] = field(default_factory=lambda: deque(maxlen=200))
    metrics: dict[str, float] = field(default_factory=dict)
    limit: int = 1
    accepts: bool = True
    clock: Callable[[], float] = time.monotonic
    later: Callable[[float, Callable[[], None]], object] | None = None
    pace: Pace = field(init=False)
    outage: Outage = field(default_factory=Outage)
    _open: set[_Request] = field(default_factory=set)
    _faults: list[tuple[HeldLease, Line, Fault]] = field(default_factory=list)
    _wake: asyncio.Event = field(default_factory=asyncio.Event)
    _emptied: asyncio.Event = field(default_factory=asyncio.Event)
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
    _pace_timer: asyncio.TimerHandle | None = None

    def __post_init__(self) -> None:
        self.pace = Pace(**(self.spec.limits or {}))
        self.pool.isolates = not self.is_endpoint

    @property
    def is_endpoint(self) -> bool:
        """Whether tokens are bought of a server that is not ours: only such a one has limits."""
        return bool(self.spec.limits)

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
                await self._wake.wait()
        finally:
            for task in (steering, exits):
                task.cancel()
            if self._pace_timer is not None:
                self._pace_timer.cancel()
            self._drop_requests()
            self.exchange.close()

    async def quiesce(self, until: Callable[[], float]) -> None:
        """Start nothing more; wait for what is in the engine until `until()`, which may move; then drop it."""
        self.accepts = False
        while self._open and (left := until() - self.clock()) > 0:
            await self._until_empty(min(left, 0.25))
        for lease, line in self._drop_requests():
            self.pool.put_back(lease, line)

    def _fill(self) -> None:
        """Start lines up to the limit."""
        while self._may_start() and (chosen := self.pool.start(now := self.clock())) is not None:
            if not self._open:
                self._busy_since = now
            request = _Request(*chosen, now, self._answered)
            self._open.add(request)
            self.counters["requests"] += 1
            self.pace.sent(now, len(request.line.body))
            url = self.engine.base_url + request.lease.endpoint
            request.pending = self.exchange.post(url, request.line.body, partial(self._ended, request))

    def _may_start(self) -> bool:
        return (
            self.accepts
            and len(self._open) < self.limit
            and not self._faults
            and self._failure is None
            and not self.engine.has_exited
            and self.clock() >= self._paused_until
            and self.has_room()
            and self._is_in_pace()
        )

    def _is_in_pace(self) -> bool:
        """Whether the server's limits let another request go now; else `run` is woken when they do."""
        wait_s = self.pace.wait_s(self.clock())
        if wait_s > 0 and self._pace_timer is None:
            self._pace_timer = asyncio.get_running_loop().call_later(max(wait_s, 0.01), self._paced)
        return wait_s <= 0

    def _paced(self) -> None:
        self._pace_timer = None
        self._wake.set()

    async def _until_empty(self, seconds: float) -> None:
        """Wait until no request is open, at most so long."""
        if self._open:
            self._emptied.clear()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._emptied.wait(), seconds)

    def _ended(self, request: _Request, outcome: Outcome) -> None:
        """A request came to its end: find out what that means, and start the next line."""
        if request not in self._open:
            return  # dropped while this was on its way
        self._close(request)
        try:
            if isinstance(outcome, BaseException):
                raise outcome
            self._apply(request, self._verdict(request, outcome))
            self._fill()
        except BaseException as defect:
            self._failure = self._failure or defect
            self._wake.set()
            raise

    def _close(self, request: _Request) -> None:
        self._open.remove(request)
        if not self._open:
            self.counters["busy_ms"] += round((self.clock() - self._busy_since) * 1000)
            self._emptied.set()

    def _verdict(self, request: _Request, outcome: Answer | NoAnswer) -> Finished | Again | Fault | Misconfigured:
        if isinstance(outcome, Answer):
            return judge(
                request.line,
                outcome.status,
                outcome.body,
                outcome.request_id,
                seconds_until(outcome.retry_after, datetime.now(UTC)),
                is_endpoint=self.is_endpoint,
            )
        if outcome.kind == "unconnected":
            return Again(f"no connection: {outcome.message}")
        if outcome.kind == "overdue":
            # silence all over, while several were in the engine: it hangs, and no single line is to blame
            is_silent = self._answered == request.answered_before and len(self._open) > 0
            self._is_hung = self._is_hung or (is_silent and not self.is_endpoint)
            return Fault("timeout", outcome.message)
        return Fault("engine_error", f"the connection broke: {outcome.message}")

    def _apply(self, request: _Request, verdict: Finished | Again | Fault | Misconfigured) -> None:
        now, lease, line = self.clock(), request.lease, request.line
        if isinstance(verdict, Finished):
            self._answered += 1
            self.outage.ended(line, is_answered=True)
            self._pause_s, self._refused_since = 0.0, None
            self.durations.append(now - request.began)
            lease.answered(now - request.began)
            self.pace.answered(verdict.usage.prompt_tokens + verdict.usage.completion_tokens, len(line.body))
            self.pool.finish(lease, line, verdict, now)
            self.on_finished()
        elif isinstance(verdict, Fault) and self.is_endpoint:
            self._failed_there(now, request, verdict)
        elif isinstance(verdict, Fault):
            self._faults.append((lease, line, verdict))
            self._wake.set()  # `run` settles it: was it the line, or the engine?
        elif isinstance(verdict, Again):
            self.pool.put_back(lease, line)
            self._pause(now, verdict)
        else:
            self.pool.put_back(lease, line)
            self._failure = self._failure or EngineFailed(verdict.message)
            self._wake.set()

    def _failed_there(self, now: float, request: _Request, fault: Fault) -> None:
        """An endpoint failed a line: charge it where the line is to blame, and hold back where it may be an outage."""
        lease, line, left = request.lease, request.line, list(self.pool.unfinished())
        is_proven = self.outage.is_to_blame(line, request.answered_before, left)
        if is_proven or (self._gives_up(now) and left == [line]):
            self.pool.charge(lease, line, fault, now)
            if line.attempts >= self.pool.max_attempts:
                self.outage.ended(line, is_answered=False)
            self.on_finished()
        else:
            self.pool.put_last(lease, line)
        if self.outage.are_last(left):
            self._refused_since = None  # bounded by the lines' own attempts
            self._pause(now, Again(fault.message, _LONGEST_ENDPOINT_PAUSE_S))  # nobody else waits: give it time to pass
        elif not is_proven:
            self._pause(now, Again(fault.message))

    def _gives_up(self, now: float) -> bool:
        return self._refused_since is not None and now - self._refused_since >= self.spec.patience_s

    def _pause(self, now: float, verdict: Again) -> None:
        """Hold back for a while, doubling; the engine's own wish counts when it names one."""
        self._refused += 1
        self._refused_since = self._refused_since or now
        if now >= self._paused_until:
            longest, most = (
                (min(_LONGEST_ENDPOINT_PAUSE_S, self.spec.patience_s), self.spec.patience_s)
                if self.is_endpoint
                else (_LONGEST_PAUSE_S, 60.0)
            )
            self._pause_s = min(longest, 2 * self._pause_s or 0.05)
            pause = max(self._pause_s, min(verdict.after_s or 0.0, most))
            self._paused_until = now + pause
            (self.later or asyncio.get_running_loop().call_later)(pause, self._resume)
        if self.is_endpoint:
            if self._gives_up(now):
                why = f"no line was answered for {now - self._refused_since:.0f} s; the last: {verdict.reason}"
                self._failure = self._failure or EngineFailed(why)
                self._wake.set()
        elif now - self._refused_since > _DOUBT_S:
            self._is_in_doubt, self._refused_since = True, None
            self._wake.set()

    def _resume(self) -> None:
        self._paused_until = 0.0  # the loop's clock is coarser than ours: this timer may be a little early
        self._wake.set()

    async def _settle(self) -> None:
        """After a fault: the engine lives, and each line answers for itself; or it is dead, and any may be to blame."""
        if self._is_hung:
            event("engine.hung", in_flight=len(self._open))
            await self.engine.kill()
        is_alive = not self._is_hung and not self.engine.has_exited and await self.engine.survived()
        self._is_in_doubt = self._is_hung = False
        if is_alive:
            faults, self._faults = self._faults, []
            for lease, line, fault in faults:
                self.pool.charge(lease, line, fault, self.clock())
            self.on_finished()
            return
        await self._until_empty(_NOTICE_CRASH_S)
        dropped = self._drop_requests()
        victims = [(lease, line) for lease, line, _ in self._faults] + dropped
        self._faults = []
        self._count_crash(len(victims))
        self.pool.crash(
            victims, f"the engine died (status {self.engine.exit_status}) with the line in it", self.clock()
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

    def _drop_requests(self) -> list[tuple[HeldLease, Line]]:
        """Cancel what is open: it gets no verdict. Returns the lines."""
        dropped = list(self._open)
        for request in dropped:
            self._close(request)
            if request.pending is not None:
                request.pending.cancel()
        return [(request.lease, request.line) for request in dropped]

    async def _steer(self) -> None:
        """Once a second, more often at first and less when nothing changes: look at the queue and set the limit."""
        preempted_before: float | None = None
        unchanged = 0
        while True:
            is_filling = bool(self._open) and self.clock() - self._busy_since < _FILLING_S
            is_calm = unchanged >= _CALM_AFTER
            await asyncio.sleep(_FAST_STEER_S if is_filling else _CALM_STEER_S if is_calm else _STEER_S)
            if self.engine.has_exited:
                continue
            self.metrics = await self.engine.metrics()
            preempted = self.metrics.get("preemptions_total", 0.0)
            load = Load(
                in_flight=len(self._open),
                running=self.metrics.get("running"),
                waiting=self.metrics.get("waiting"),
                kv_usage=self.metrics.get("kv_usage"),
                preempted=0.0 if preempted_before is None else preempted - preempted_before,
                refused=self._refused,
            )
            preempted_before, self._refused = preempted, 0
            limit = steer(self.limit, load, start=self.spec.concurrency_start, maximum=self.spec.concurrency_max)
            unchanged += 1
            if limit != self.limit:
                unchanged = 0
                event("driver.steered", limit=limit, before=self.limit, waiting=load.waiting, running=load.running)
                self.limit = limit
                self._wake.set()

    async def _wake_on_exit(self) -> None:
        await self.engine.wait_exited()
        self._wake.set()
