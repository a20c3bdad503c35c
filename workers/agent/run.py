"""One agent's life: hello, start the engine, work, and an orderly end, whatever the reason for it.

An end is orderly (told to drain, interrupted, nothing more to do, engine failed: what is finished is committed, the
engine stopped, goodbye said) or abrupt (dismissed, forgotten: the engine is killed and that is all).
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable, Collection, Coroutine
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal

import aiohttp

from workers.agent.config import Config
from workers.agent.dead_man import tell_alive, watch_dead_man
from workers.agent.drain import plan_drain
from workers.agent.driver import Driver
from workers.agent.engine import Engine
from workers.agent.errors import EngineFailed, ProtocolDefect, Refused
from workers.agent.failpoints import Failpoints
from workers.agent.heartbeat import Heartbeat
from workers.agent.identity import Identity, trusting
from workers.agent.intake import Intake
from workers.agent.lean import IDLE_CONNECTION_S, exchange_for
from workers.agent.log import event
from workers.agent.machine import machine_facts
from workers.agent.metadata import asker
from workers.agent.notices import notices
from workers.agent.parts import Parts
from workers.agent.pool import Pool
from workers.agent.spec import Welcome
from workers.agent.wire import NotNow, Wire, next_pause

# Nobody says with SIGTERM how long there is; container engines give 10 s before SIGKILL.
_SIGTERM_NOTICE_S = 9.0
_UNKNOWN_UPLOAD_S = 1.0
_GOODBYES = 3


@dataclass(frozen=True, slots=True)
class Ending:
    """Why an agent ends in an orderly way."""

    reason: Literal["stop", "drain", "notice", "failed"]
    error: str | None = None


async def run(config: Config) -> int:
    """Work until there is a reason to end; the process's exit status. Raises AgentError for an abrupt end."""
    failpoints = Failpoints(config.failpoint)
    to_broker = aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar())
    to_engine = aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=IDLE_CONNECTION_S),
        cookie_jar=aiohttp.DummyCookieJar(),
    )
    async with to_broker, to_engine:
        return await _Agent(config, failpoints, to_broker, to_engine).live()


class _Agent:
    def __init__(
        self,
        config: Config,
        failpoints: Failpoints,
        to_broker: aiohttp.ClientSession,
        to_engine: aiohttp.ClientSession,
    ) -> None:
        self._config = config
        self._failpoints = failpoints
        self._to_engine = to_engine
        self._wire = Wire(to_broker, config.broker_url, config.bootstrap_token)
        self._identity = Identity(wants_certificate=config.identity == "certificate", broker_ca=config.broker_ca)
        loop = asyncio.get_running_loop()
        self._ending: asyncio.Future[Ending] = loop.create_future()
        self._trouble: asyncio.Future[None] = loop.create_future()
        self._tasks: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()
        self._deadline: float | None = None
        self._engine: Engine | None = None
        self._wake_driver: Callable[[], None] = lambda: None
        self._wakers: list[Callable[[], None]] = []

    async def live(self) -> int:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._drain, "drain", _SIGTERM_NOTICE_S)
        working = asyncio.create_task(self._work())
        watchdog = asyncio.create_task(watch_dead_man(self._config.dead_man_s, lambda: self._wire.last_answer_at))
        if self._config.alive_file is not None:
            self._spawn(tell_alive(self._config.alive_file, lambda: self._wire.last_answer_at))
        first: set[asyncio.Future[Any]] = {working, watchdog, self._trouble}
        try:
            await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
            for other in (watchdog, self._trouble):
                if other.done():
                    other.result()
            return working.result()
        finally:
            for task in (working, watchdog, *self._tasks):
                task.cancel()
            if self._engine is not None:
                await self._engine.kill()

    async def _work(self) -> int:
        welcome = await self._hello()
        if welcome is None:
            return 0
        engine = self._engine = Engine(welcome.engine, self._to_engine, self._config.folder)
        engine.timings.read_pull(self._config.folder)
        pool = Pool(welcome.max_attempts)
        driver = Driver(
            spec=welcome.engine,
            engine=engine,
            exchange=exchange_for(welcome.engine, self._to_engine),
            pool=pool,
            on_finished=self._on_finished,
            has_room=lambda: parts.has_room,
        )
        heartbeat = Heartbeat(
            wire=self._wire,
            identity=self._identity,
            pool=pool,
            driver=driver,
            interval_s=welcome.heartbeat_s,
            on_drain=lambda in_s: self._drain("drain", in_s),
            on_renewed=self._on_change,
        )
        parts = Parts(
            wire=self._wire,
            pool=pool,
            limits=welcome.part,
            failpoints=self._failpoints,
            counters=driver.counters,
            on_change=self._on_change,
            # its shard may be another's from then on: the broker should not have to wait for the next beat
            on_let_go=heartbeat.beat_now,
            is_bought=driver.is_endpoint,
        )
        engine_spec = welcome.engine
        intake = Intake(
            self._wire, pool, driver, engine_spec.served_model, self._on_change, engine_spec.unstated_tokens
        )
        self._wake_driver, self._wakers = driver.wake, [parts.wake, intake.wake]
        self._spawn(heartbeat.run())
        self._spawn(self._watch_notices(heartbeat))
        if await self._start(engine):
            heartbeat.state = "ready"
            heartbeat.beat_now()
            self._spawn(driver.run())
            self._spawn(parts.run())
            working_off = self._spawn(self._work_off(intake, pool))
            self._ending.add_done_callback(lambda _: working_off.cancel())  # no more shards
        ending = await self._ending
        event("agent.ending", reason=ending.reason, error=ending.error)
        await self._close(ending, driver, parts, heartbeat)
        return EngineFailed.exit_status if ending.reason == "failed" else 0

    async def _hello(self) -> Welcome | None:
        """Introduce this machine. None: told to end before the broker answered."""
        identity = self._identity
        if self._config.broker_ca:
            self._wire.use_tls(trusting(self._config.broker_ca))
        facts = await machine_facts(self._config.rental_id, identity.pubkey, self._config.folder)
        facts |= await identity.introduction()
        asking = asyncio.create_task(self._wire.hello(facts))
        await self._unless_ending(asking)
        if not asking.done():
            asking.cancel()
            return None
        try:
            answer = asking.result()
        except Refused as refusal:
            raise ProtocolDefect(str(refusal)) from refusal
        self._wire.use_token(answer["token"])
        context, prover = identity.adopt(answer)
        if context is not None:
            self._wire.use_tls(context)
        if prover is not None:
            self._wire.use_proof(prover)
        welcome = Welcome.from_wire(answer)
        event("agent.welcomed", worker=welcome.worker_id, rental=self._config.rental_id)
        return welcome

    async def _start(self, engine: Engine) -> bool:
        """Start the engine, unless told to end before it is up."""
        starting = asyncio.create_task(engine.start())
        await self._unless_ending(starting)
        if not starting.done():
            starting.cancel()
            return False
        try:
            starting.result()
        except EngineFailed as failure:
            self._end(Ending("failed", str(failure)))
            return False
        return True

    async def _unless_ending(self, task: asyncio.Future[Any]) -> None:
        """Wait for `task`, or for a reason to end, whichever is first."""
        either: set[asyncio.Future[Any]] = {task, self._ending}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)

    async def _work_off(self, intake: Intake, pool: Pool) -> None:
        """Take in shards until there are no more, then wait until all are committed."""
        await intake.run()
        while pool.leases:
            self._changed.clear()
            await self._changed.wait()
        self._end(Ending("stop"))

    async def _watch_notices(self, heartbeat: Heartbeat) -> None:
        source = self._config.metadata
        ask = asker(source, self._to_engine) if source else None
        async for at in notices(self._config.folder, ask):
            self._drain("notice", at - time.monotonic())
            heartbeat.interrupted(at)

    async def _close(self, ending: Ending, driver: Driver, parts: Parts, heartbeat: Heartbeat) -> None:
        """Finish what can be finished, commit all that is finished, stop the engine, say goodbye."""
        heartbeat.state = "failed" if ending.reason == "failed" else "draining"
        heartbeat.error = ending.error
        heartbeat.beat_now()
        began = time.monotonic()
        await driver.quiesce(lambda: began if ending.reason == "failed" else self._quiesce_until(began, driver, parts))
        stopping = asyncio.create_task(driver.engine.stop(self._grace_s(driver)))
        if parts.is_running:
            await parts.flush()
        await stopping
        if ending.reason == "failed":
            await heartbeat.beat()
        for task in self._tasks:
            task.cancel()
        await self._say_goodbye(ending)

    def _quiesce_until(self, began: float, driver: Driver, parts: Parts) -> float:
        """When to stop waiting for lines in the engine; asked again and again, because the deadline may move."""
        longest = driver.spec.request_timeout_s
        if self._deadline is None:
            return began + longest
        plan = plan_drain(
            notice=timedelta(seconds=self._deadline - began),
            in_flight_p95=timedelta(seconds=_p95(driver.durations, longest)),
            upload_p95=timedelta(seconds=_p95(parts.durations, _UNKNOWN_UPLOAD_S)),
        )
        return began + plan.wait_for_in_flight.total_seconds()

    def _grace_s(self, driver: Driver) -> float:
        """How long the engine may take to stop: nothing is lost when it is killed, the machine's last seconds are."""
        left = driver.spec.stop_grace_s if self._deadline is None else self._deadline - time.monotonic() - 1
        return max(0.0, min(driver.spec.stop_grace_s, left))

    async def _say_goodbye(self, ending: Ending) -> None:
        for tries in range(_GOODBYES):
            try:
                await self._wire.goodbye(ending.reason, ending.error)
            except (NotNow, Refused) as silence:
                event("goodbye.unanswered", reason=str(silence))
                await asyncio.sleep(next_pause(tries, None, 0.5))
            else:
                return

    def _drain(self, reason: Literal["drain", "notice"], in_s: float | None) -> None:
        """End in an orderly way, within `in_s` seconds where that is known. Later calls may only shorten it."""
        if in_s is not None:
            deadline = time.monotonic() + in_s
            self._deadline = deadline if self._deadline is None else min(self._deadline, deadline)
        self._end(Ending(reason))

    def _end(self, ending: Ending) -> None:
        if not self._ending.done():
            self._ending.set_result(ending)

    def _on_change(self) -> None:
        self._wake_all()
        self._wake_driver()

    def _on_finished(self) -> None:
        """The driver says so itself, for every line: it needs no waking."""
        if self._engine is not None:
            self._engine.timings.answered()
        self._wake_all()

    def _wake_all(self) -> None:
        self._changed.set()
        for wake in self._wakers:
            wake()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._reap)
        return task

    def _reap(self, task: asyncio.Task[None]) -> None:
        """A failed engine is an orderly end; anything else that a task raises ends the agent at once."""
        error = None if task.cancelled() else task.exception()
        if isinstance(error, EngineFailed):
            self._end(Ending("failed", str(error)))
        elif error is not None and not self._trouble.done():
            self._trouble.set_exception(error)


def _p95(durations: Collection[float], unknown: float) -> float:
    """The 95th percentile in seconds, or `unknown` when there are none."""
    ordered = sorted(durations)
    return ordered[int(0.95 * (len(ordered) - 1))] if ordered else unknown
