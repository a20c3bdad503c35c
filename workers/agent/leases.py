"""A lease as the worker holds it: what is still to be done, what is in the engine, what is finished and not committed.

Time is the monotonic clock of this machine, in seconds; the broker's own clock decides when a lease really ends.
"""

from __future__ import annotations

import base64
from collections import Counter, deque
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from workers.agent.answers import Finished
from workers.agent.lines import Line
from workers.agent.took import AT_ONCE, counter_of

# Past this share of the ttl without a renewal nothing new is started: it may be another's by the time it is done.
SAFE_SHARE = 0.8


@dataclass(frozen=True, slots=True)
class PartSeal:
    """A lease's key for its parts, in memory alone; each part's context is `context` and its number."""

    key: bytes = field(repr=False)
    context: str

    @classmethod
    def from_wire(cls, seal: Mapping[str, Any] | None) -> PartSeal | None:
        """`seal` is that of a lease."""
        part = None if seal is None else seal["part"]
        return None if part is None else cls(base64.b64decode(part["key"]), part["context"])


@dataclass(slots=True, eq=False)
class HeldLease:
    """One shard leased to this worker.

    `fresh` is longest first. `suspects` are groups of lines that were in flight when an engine or a worker died, each
    to be run with nothing else in the engine; `isolated` is the rest of the group that is being run. `is_lost`: start
    nothing more, but commit what is finished. `is_void`: the broker takes nothing more of it. `part_lines`: cut a part at
    least every so many lines, None as for all. `part_seal`: what its parts are sealed with, None where the batch is not sealed.
    `concurrency`: while a line of it is in the engine, so many are at most, whoever's they are; None as many as the engine likes.
    `took` counts how long its requests took since the last part, where there is such a limit.
    """

    shard_id: str
    epoch: int
    nonce: str
    ttl_s: float
    endpoint: str
    part_put: str
    renewed_at: float
    part_lines: int | None = None
    part_seal: PartSeal | None = None
    concurrency: int | None = None
    fresh: deque[Line] = field(default_factory=deque)
    suspects: deque[list[Line]] = field(default_factory=deque)
    isolated: list[Line] = field(default_factory=list)
    in_flight: dict[int, Line] = field(default_factory=dict)
    finished: list[Finished] = field(default_factory=list)
    finished_bytes: int = 0
    took: Counter[str] = field(default_factory=Counter)
    oldest_finished_at: float = 0.0
    next_seq: int = 0
    is_committing: bool = False
    is_lost: bool = False
    is_void: bool = False

    @classmethod
    def from_wire(cls, lease: Mapping[str, Any], now: float) -> HeldLease:
        """`lease` is the object of that name in the answer to a lease request; its lines come by `admit`."""
        return cls(
            shard_id=lease["shard_id"],
            epoch=lease["epoch"],
            nonce=lease["nonce"],
            ttl_s=lease["ttl_s"],
            endpoint=lease["endpoint"],
            part_put=lease["part_put"],
            renewed_at=now,
            part_lines=lease["part_lines"],
            part_seal=PartSeal.from_wire(lease.get("seal")),
            concurrency=lease.get("concurrency"),
        )

    def admit(self, lines: Iterable[Line], suspects: Mapping[int, int], *, alone_from: int) -> None:
        """Take the lines to be done. `suspects`: line number → attempts spent; from `alone_from` on each runs alone."""
        group = []
        for line in lines:
            line.attempts = suspects.get(line.idx, 0)
            if line.attempts == 0:
                self.fresh.append(line)
            elif line.attempts >= alone_from:
                self.suspects.append([line])
            else:
                group.append(line)
        if group:
            self.suspects.append(group)

    def may_start(self, now: float) -> bool:
        """Whether a new line may go to the engine under this lease."""
        return not self.is_lost and now - self.renewed_at < SAFE_SHARE * self.ttl_s

    @property
    def waiting(self) -> int:
        """Lines not yet in the engine."""
        return len(self.fresh) + len(self.isolated) + sum(len(group) for group in self.suspects)

    @property
    def is_worked_off(self) -> bool:
        """Whether nothing more will finish: all is done, or what is not done may not be started."""
        return not self.in_flight and (self.is_lost or self.waiting == 0)

    def keep(self, finished: Finished, now: float) -> None:
        """A line is finished: it waits here for the next part."""
        if not self.finished:
            self.oldest_finished_at = now
        self.finished.append(finished)
        self.finished_bytes += len(finished.record)

    def answered(self, seconds: float) -> None:
        """A request of it was answered after so long."""
        if self.concurrency is not None:
            self.took[counter_of(seconds)] += 1

    def take_took(self) -> Counter[str]:
        """How long requests took since this was asked last, and at how many at once."""
        taken, self.took = self.took, Counter()
        if taken and self.concurrency is not None:
            taken[AT_ONCE] = self.concurrency
        return taken

    def take_finished(self) -> list[Finished]:
        """Everything that waits for a part; from here on the caller answers for it."""
        taken, self.finished, self.finished_bytes = self.finished, [], 0
        return taken

    def forget(self, done: Collection[int]) -> None:
        """Others have done these lines: do not start them."""
        self.fresh = deque(line for line in self.fresh if line.idx not in done)
        self.isolated = [line for line in self.isolated if line.idx not in done]
        groups = ([line for line in group if line.idx not in done] for group in self.suspects)
        self.suspects = deque(group for group in groups if group)

    def drop_waiting(self) -> None:
        """Start nothing more, whatever it is."""
        self.fresh.clear()
        self.isolated.clear()
        self.suspects.clear()

    def blame(self) -> dict[int, int]:
        """Line number → attempts, for lines that failed before and are not finished: what a successor must know."""
        aside = (line for group in self.suspects for line in group)
        unfinished = [*self.in_flight.values(), *self.fresh, *self.isolated, *aside]
        return {line.idx: line.attempts for line in unfinished if line.attempts}
