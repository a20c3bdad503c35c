"""Parts: finished lines become one immutable object and one commit, which the broker counts or refuses.

An uploaded object without a commit does not exist, so a part is delivered until there is an outcome; and every outcome
is final for its (epoch, seq). What each outcome means is `decide`, pure; the shell around it only carries bytes.
"""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import random
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from workers.agent import sealing
from workers.agent.answers import Finished
from workers.agent.errors import Dismissed, ProtocolDefect, Refused
from workers.agent.failpoints import Failpoints
from workers.agent.leases import HeldLease, PartSeal
from workers.agent.log import event
from workers.agent.pool import Pool
from workers.agent.spec import PartLimits
from workers.agent.wire import NotNow, Wire, next_pause

# More finished and uncommitted than this, and no new line starts: the store or the broker is away.
BACKLOG_BYTES = 64 * 1024 * 1024
_REFUSALS_IN_A_ROW = 3
_REFUSED_TARGETS = 20


@dataclass(frozen=True, slots=True)
class Part:
    """A part as it is stored: gzip'd JSON Lines. The same lines in the same order are the same bytes."""

    content: bytes = field(repr=False)
    sha256: str
    lines: list[list[int]]
    usage: list[list[Any]]


@dataclass(frozen=True, slots=True)
class Decision:
    """What follows from an outcome. `recut`: line numbers to send again under a new seq."""

    kind: Literal["counted", "recut", "void", "revoked", "defect"]
    recut: frozenset[int] = frozenset()
    lease_lost: bool = False
    shard_done: bool = False
    done: frozenset[int] = frozenset()


def cut(finished: Sequence[Finished], seal: PartSeal | None = None, seq: int = 0) -> Part:
    """Make the part of these lines; sealed, it is another object each time."""
    # no time in the header: a part that is cut twice is the same object
    content = gzip.compress(b"".join(line.record for line in finished), compresslevel=6, mtime=0)
    if seal is not None:
        content = sealing.seal(seal.key, f"{seal.context}-{seq}", content)
    by_number = sorted(finished, key=lambda line: line.idx)
    usage = [
        [
            line.idx,
            line.status,
            line.usage.prompt_tokens,
            line.usage.completion_tokens,
            line.usage.cached_tokens,
            line.attempts,
            line.usage.estimated,
            line.usage.reasoning_tokens,
        ]
        for line in by_number
    ]
    return Part(content, hashlib.sha256(content).hexdigest(), to_ranges(line.idx for line in by_number), usage)


def to_ranges(numbers: Iterable[int]) -> list[list[int]]:
    """Sorted half-open ranges of sorted, distinct numbers.

    >>> to_ranges([0, 1, 2, 7, 9, 10])
    [[0, 3], [7, 8], [9, 11]]
    """
    ranges: list[list[int]] = []
    for number in numbers:
        if ranges and ranges[-1][1] == number:
            ranges[-1][1] = number + 1
        else:
            ranges.append([number, number + 1])
    return ranges


def from_ranges(ranges: Iterable[Sequence[int]]) -> frozenset[int]:
    """The inverse of `to_ranges`."""
    return frozenset(number for start, stop in ranges for number in range(start, stop))


def decide(answer: Mapping[str, Any], numbers: Collection[int]) -> Decision:
    """What to do after the broker's answer to a commit of the lines `numbers` (see jobs.types.CommitAnswer)."""
    outcome = answer["outcome"]
    if outcome == "replayed":
        outcome = answer["outcome_before"] or "committed"
    done = from_ranges(answer["done"])
    lost, shard_done = bool(answer["lease_lost"]), bool(answer["shard_done"])
    if outcome in ("committed", "committed_superseded"):
        return Decision("counted", lease_lost=lost, shard_done=shard_done, done=done)
    if outcome in ("rejected_overlap", "rejected_conflict"):
        left = frozenset(numbers) - done
        if outcome == "rejected_overlap" and left == frozenset(numbers):
            return Decision("defect", lease_lost=lost)  # it names no line of ours: sending them again would not end
        return Decision("recut", recut=left, lease_lost=lost, shard_done=shard_done, done=done)
    if outcome == "rejected_revoked":
        return Decision("revoked", lease_lost=True)
    if outcome == "rejected_terminal":
        return Decision("void", lease_lost=True)
    return Decision("defect", lease_lost=lost, done=done)


def is_due(lease: HeldLease, limits: PartLimits, now: float, *, flush: bool) -> bool:
    """Whether what is finished of this lease must go out now."""
    if not lease.finished or lease.is_committing:
        return False
    return (
        flush
        or lease.is_lost
        or lease.is_worked_off
        or len(lease.finished) >= min(limits.lines, lease.part_lines or limits.lines)
        or lease.finished_bytes >= limits.bytes
        or now - lease.oldest_finished_at >= limits.seconds
    )


@dataclass(slots=True, eq=False)
class Parts:
    """Cuts and commits, one part at a time for each lease. `run` works until cancelled. `on_let_go` is called when the last
    finished line of a lost lease is committed.

    `is_bought`: answers are paid for each, so that those to a batch that has ended are told, too; else they are dropped.

    It raises Dismissed (401, 403, revoked) and ProtocolDefect (parts refused again and again).
    """

    wire: Wire
    pool: Pool
    limits: PartLimits
    failpoints: Failpoints
    counters: Counter[str]
    on_change: Callable[[], None]
    on_let_go: Callable[[], None]
    is_bought: bool = False
    durations: deque[float] = field(default_factory=lambda: deque(maxlen=50))
    is_running: bool = False
    _flush: bool = False
    _timer: asyncio.TimerHandle | None = None
    _wake: asyncio.Event = field(default_factory=asyncio.Event)
    _settled: asyncio.Event = field(default_factory=asyncio.Event)
    _commits: set[asyncio.Task[None]] = field(default_factory=set)
    _outstanding_bytes: int = 0
    _refusals: int = 0

    def wake(self) -> None:
        """A line was finished, or a lease changed. Called for every line, so it wakes nobody for nothing."""
        now = time.monotonic()
        if self._timer is None or any(self._is_to_do(lease, now) for lease in self.pool.leases):
            self._wake.set()

    @property
    def has_room(self) -> bool:
        kept = sum(lease.finished_bytes for lease in self.pool.leases)
        return kept + self._outstanding_bytes < BACKLOG_BYTES

    async def run(self) -> None:
        self.is_running = True
        try:
            while True:
                self._wake.clear()
                self._look()
                self._set_timer()
                await self._wake.wait()
        finally:
            for task in self._commits:
                task.cancel()

    async def flush(self) -> None:
        """From now on every finished line goes out at once; return when none is left uncommitted."""
        self._flush = True
        self._settled.clear()
        self._wake.set()
        await self._settled.wait()

    def _look(self) -> None:
        """Start the commits that are due, close the leases that have nothing left, raise what a commit raised."""
        for task in [task for task in self._commits if task.done()]:
            self._commits.discard(task)
            task.result()
        now = time.monotonic()
        for lease in list(self.pool.leases):
            if is_due(lease, self.limits, now, flush=self._flush):
                self._begin(lease)
            elif self._is_over(lease):
                self.pool.close(lease)
                event("lease.closed", shard=lease.shard_id, epoch=lease.epoch)
                self.on_change()
                if lease.is_lost and not lease.is_void:
                    self.on_let_go()
        if not self._commits and not any(lease.finished for lease in self.pool.leases):
            self._settled.set()

    def _begin(self, lease: HeldLease) -> None:
        lease.is_committing = True
        size = lease.finished_bytes
        self._outstanding_bytes += size
        task = asyncio.create_task(self._commit(lease, lease.take_finished()))

        def ended(_: asyncio.Task[None]) -> None:
            lease.is_committing = False
            self._outstanding_bytes -= size
            self._wake.set()
            self.on_change()

        self._commits.add(task)
        task.add_done_callback(ended)

    def _is_to_do(self, lease: HeldLease, now: float) -> bool:
        return is_due(lease, self.limits, now, flush=self._flush) or self._is_over(lease)

    @staticmethod
    def _is_over(lease: HeldLease) -> bool:
        return lease.is_worked_off and not lease.finished and not lease.is_committing

    def _set_timer(self) -> None:
        """Look again when the oldest finished line has waited long enough; None: there is none."""
        if self._timer is not None:
            self._timer.cancel()
        waiting = [lease for lease in self.pool.leases if lease.finished and not lease.is_committing]
        oldest = min((lease.oldest_finished_at for lease in waiting), default=None)
        if oldest is None:
            self._timer = None
        else:
            left = max(0.0, oldest + self.limits.seconds - time.monotonic())
            self._timer = asyncio.get_running_loop().call_later(left, self._wake.set)

    async def _commit(self, lease: HeldLease, finished: list[Finished]) -> None:
        """Deliver these lines until each is counted, done by another, or refused for good."""
        while finished:
            seq = lease.next_seq
            lease.next_seq += 1
            counters, took = self._take_counters(), lease.take_took()
            try:
                part = await asyncio.to_thread(cut, finished, lease.part_seal, seq)
                answer = await self._deliver(lease, seq, part, counters + took)
            except Refused as refusal:
                self.counters.update(counters)
                event("part.refused", shard=lease.shard_id, epoch=lease.epoch, seq=seq, error=str(refusal))
                self._give_up(lease, str(refusal))
                return
            decision = decide(answer, [line.idx for line in finished])
            event(
                "part.answered",
                shard=lease.shard_id,
                epoch=lease.epoch,
                seq=seq,
                lines=len(finished),
                outcome=answer["outcome"],
                message=answer["message"],
            )
            if decision.kind != "counted":
                self.counters.update(counters)  # nobody counted them: the next commit reports them
                lease.took.update(took)
            finished = self._follow(lease, finished, decision, answer)

    def _follow(
        self, lease: HeldLease, finished: list[Finished], decision: Decision, answer: Mapping[str, Any]
    ) -> list[Finished]:
        """Do what was decided; the lines to send again."""
        if decision.kind == "revoked":
            raise Dismissed(f"the placement was revoked: {answer['message']}")
        if decision.kind == "defect":
            self._give_up(lease, f"{answer['outcome']}: {answer['message']}")
            return []
        self._refusals = 0
        if decision.kind == "void":
            self.pool.abandon(lease, is_void=not self.is_bought)
            return []
        lease.forget(decision.done)
        if decision.lease_lost or decision.shard_done:
            self.pool.abandon(lease, is_void=decision.shard_done)
        if decision.kind == "counted":
            return []
        again = [line for line in finished if line.idx in decision.recut]
        for line in finished:
            if line.idx not in decision.recut:
                self.counters["wasted_prompt_tokens"] += line.usage.prompt_tokens
                self.counters["wasted_completion_tokens"] += line.usage.completion_tokens
        return again

    def _give_up(self, lease: HeldLease, reason: str) -> None:
        """Let go of a lease whose parts are refused: its lines are leased again, perhaps to a better worker."""
        self.pool.abandon(lease, is_void=True)
        self._refusals += 1
        if self._refusals >= _REFUSALS_IN_A_ROW:
            raise ProtocolDefect(f"{self._refusals} parts in a row were refused; the last: {reason}")

    async def _deliver(self, lease: HeldLease, seq: int, part: Part, counters: Counter[str]) -> dict[str, Any]:
        """Upload and commit, until the broker says what became of it. Raises Refused and Dismissed."""
        began = time.monotonic()
        claim = {"epoch": lease.epoch, "nonce": lease.nonce, "seq": seq}
        size = {"sha256": part.sha256, "size": len(part.content)}
        told = {"lines": part.lines, "usage": part.usage, "counters": dict(counters)}
        self.failpoints.reached("agent.before_put")
        sealed = {} if lease.part_seal is None else {"sealed": True}
        answer = await self._at_once(lease, claim | size | told | sealed, part.content)
        if answer is None:
            key = await self._upload(lease, claim | size | sealed, part.content)
            self.failpoints.reached("agent.after_put")
            answer = await self.wire.commit(lease.shard_id, claim | size | {"key": key} | told)
        self.durations.append(time.monotonic() - began)
        return answer

    async def _at_once(self, lease: HeldLease, commit: Mapping[str, Any], content: bytes) -> dict[str, Any] | None:
        """Part and commit in one request; None where the broker did not offer that, or refuses it: the long way will do, or
        be refused for the same reason (another broker of a rolling upgrade, a proxy that takes no such body)."""
        if len(content) > self.limits.delivered_bytes:
            return None
        try:
            answer = await self.wire.deliver(lease.shard_id, commit, content)
        except Refused as refusal:
            event("part.not_delivered", shard=lease.shard_id, error=str(refusal))
            return None
        self.failpoints.reached("agent.after_put")
        return answer

    async def _upload(self, lease: HeldLease, request: Mapping[str, Any], content: bytes) -> str:
        """Put the object, asking for a fresh target when the old one no longer works. Returns its key."""
        tries = 0
        while True:
            target = await self.wire.part_target(lease.part_put, request)
            try:
                await self.wire.put(target["put_url"], content, target["headers"])
                return str(target["key"])
            except (NotNow, Refused) as refusal:
                if isinstance(refusal, Refused) and tries >= _REFUSED_TARGETS:
                    raise
                pause = next_pause(tries, refusal.after_s if isinstance(refusal, NotNow) else None, random.random())
                event("part.not_stored", shard=lease.shard_id, error=str(refusal), again_in_s=round(pause, 2))
                await asyncio.sleep(pause)
                tries += 1

    def _take_counters(self) -> Counter[str]:
        taken = Counter({name: count for name, count in self.counters.items() if count > 0})
        taken["retried"] += self.pool.retried
        self.pool.retried = 0
        self.counters.clear()
        return taken
