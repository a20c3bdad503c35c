"""The pulse: says how things stand, and brings back renewals, a fresh token, lost leases and the order to drain."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from workers.agent.driver import Driver
from workers.agent.errors import Refused
from workers.agent.identity import Identity
from workers.agent.leases import HeldLease
from workers.agent.log import event
from workers.agent.pool import Pool
from workers.agent.wire import NotNow, Wire

State = Literal["starting", "ready", "draining", "failed"]
# A broker with more to do than it can takes seconds; it is not to be asked twice because of that.
_LEAST_PATIENCE_S = 10.0
# Other calls wait as long. Leases do not wait for it: each is given up by its own clock (SAFE_SHARE), heard or not.
_MOST_PATIENCE_S = 60.0


@dataclass(slots=True, eq=False)
class Heartbeat:
    """`run` beats until cancelled and raises Dismissed. `on_drain` is called with the seconds that are left, or None."""

    wire: Wire
    identity: Identity
    pool: Pool
    driver: Driver
    interval_s: float
    on_drain: Callable[[float | None], None]
    on_renewed: Callable[[], None]
    state: State = "starting"
    interrupted_at: float | None = None
    error: str | None = None
    _patience_s: float = 0.0
    _in_vain: int = 0
    _soon: asyncio.Event = field(default_factory=asyncio.Event)
    _at_once: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self._patience_s = first_patience_s(self.interval_s)

    def beat_now(self) -> None:
        """Something happened that the broker should not wait for."""
        self._soon.set()

    def interrupted(self, at: float) -> None:
        """This machine will be taken away at `at` (monotonic). The broker hears it at once, whatever a heartbeat waits for."""
        self.interrupted_at, self.state = at, "draining"
        self._at_once.set()
        self._soon.set()

    async def run(self) -> None:
        while True:
            self._soon.clear()
            self._at_once.clear()
            was_answered = await self._beat_unless_overtaken()
            # unanswered ones are repeated soon: leases hang on them
            pause = self.interval_s if was_answered else pause_s(self.interval_s)
            try:
                await asyncio.wait_for(self._soon.wait(), pause)
            except TimeoutError:
                continue

    async def _beat_unless_overtaken(self) -> bool:
        """A heartbeat, or as much of it as there is time for before a notice."""
        beating = asyncio.create_task(self.beat())
        overtaken = asyncio.create_task(self._at_once.wait())
        try:
            await asyncio.wait({beating, overtaken}, return_when=asyncio.FIRST_COMPLETED)
            return beating.done() and beating.result()
        finally:
            beating.cancel()
            overtaken.cancel()

    async def beat(self) -> bool:
        """One heartbeat; whether it was answered."""
        sent_at = time.monotonic()
        patience, heard = self._patience_s, False
        # lost ones, too, until their last lines are committed: a batch that is being cancelled waits for these
        named = [lease for lease in self.pool.leases if not lease.is_void]
        try:
            csr = await self.identity.renewal()
            message = self._message(named, sent_at) | ({"csr": csr} if csr else {})
            answer = await self.wire.heartbeat(message, patience)
            heard = True
        except (NotNow, Refused) as silence:
            event("heartbeat.unanswered", reason=str(silence))
            return False
        finally:
            took = time.monotonic() - sent_at
            self._in_vain = 0 if heard else self._in_vain + (took >= patience)
            self._patience_s = next_patience_s(self.interval_s, patience, took, heard=heard, in_vain=self._in_vain)
        self._follow(answer, named, sent_at)
        return True

    def _message(self, named: list[HeldLease], now: float) -> dict[str, Any]:
        leases = [
            {
                "shard_id": lease.shard_id,
                "epoch": lease.epoch,
                "nonce": lease.nonce,
                "in_flight": sorted(lease.in_flight),
                "suspects": {str(idx): attempts for idx, attempts in sorted(lease.blame().items())},
            }
            for lease in named
        ]
        driver = self.driver
        return {
            "state": self.state,
            "leases": leases,
            "metrics": {
                **driver.metrics,
                "driver_in_flight": self.pool.in_flight,
                "driver_concurrency": driver.limit,
            },
            "notice_in_s": None if self.interrupted_at is None else max(0.0, self.interrupted_at - now),
            "error": self.error,
            "timings": self.driver.engine.timings.known,
        }

    def _follow(self, answer: Mapping[str, Any], named: list[HeldLease], sent_at: float) -> None:
        if answer["token"] is not None:
            self.wire.use_token(answer["token"])
        context = self.identity.renewed(answer.get("certificate"))
        if context is not None:
            self.wire.use_tls(context)
        lost = set(answer["lost"])
        for lease in named:  # the answer is about these epochs; a lease that came meanwhile is not meant
            if lease.is_lost:
                continue
            if lease.shard_id in lost:
                event("lease.lost", shard=lease.shard_id, epoch=lease.epoch)
                self.pool.abandon(lease, is_void=False)
            else:
                # counted from the question, not the answer: the broker renewed at some moment between the two
                lease.renewed_at = max(lease.renewed_at, sent_at)
        self.on_renewed()
        if answer["drain"]:
            self.on_drain(answer["drain_in_s"])


def first_patience_s(interval_s: float) -> float:
    """How long a heartbeat may wait for its answer: until the next is due. A connection to a broker that was cut off hangs, and a
    new one may reach another: leases live for four heartbeats (the broker's defaults), and an order to drain waits.

    >>> first_patience_s(15), first_patience_s(0.5)
    (15, 10.0)
    """
    return max(_LEAST_PATIENCE_S, interval_s)


def pause_s(interval_s: float) -> float:
    """How long after a heartbeat that was not answered the next one is sent.

    >>> pause_s(15), pause_s(0.5)
    (3.0, 0.2)
    """
    return min(interval_s, max(0.2, interval_s / 5))


def next_patience_s(interval_s: float, patience_s: float, took_s: float, *, heard: bool, in_vain: int) -> float:
    """How long the next heartbeat may wait, when this one was allowed `patience_s` and ended after `took_s`; `in_vain`: how many
    in a row, this one included, waited to their end.

    From the second on it doubles: a broker that needs 20 s for each answer would never be heard. Not from the first on: of two
    brokers one may be cut off, and the third connection must be tried before the other gives this worker up (`worker_silence_s`,
    60 s: 15 s before the first try, which is followed by others after 18 and 36 s). After an answer it is twice what that took,
    so that the same broker is heard again. A refusal or a broken connection says nothing about it.

    >>> [next_patience_s(15, 15, 15, heard=False, in_vain=tries) for tries in (1, 2)]
    [15, 30]
    >>> next_patience_s(15, 30, 20, heard=True, in_vain=0)
    40
    """
    wanted = 2 * took_s if heard else patience_s
    if in_vain > 1 and took_s >= patience_s:
        wanted = 2 * patience_s
    return max(first_patience_s(interval_s), min(_MOST_PATIENCE_S, wanted))
