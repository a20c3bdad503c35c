"""All lines that this machine holds, and which of them may go to the engine now. No I/O.

Leases are worked off in the order they came, lines longest first. When an engine dies, any line that was in it may
have killed it. Those suspects are put aside until their shard has nothing else left, and are then run with nothing else
in the engine, in groups of an eighth; a group that kills again is cut into eighths again, until the line that does it
is alone. A line that has spent its attempts, the last of them alone, is a dead letter.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from workers.agent.answers import Fault, Finished, dead_letter
from workers.agent.leases import HeldLease
from workers.agent.lines import Line
from workers.agent.log import event

# Up to 8 suspects run one by one, up to 64 in two rounds: few restarts of an engine that loads for minutes,
# and no long stretch in which a big machine works on a single line.
_GROUPS = 8


@dataclass(slots=True, eq=False)
class Pool:
    """`leases` may hold a shard twice: under the lease that was lost and under the one that followed it.

    A line goes from waiting to in flight (`start`) and then to finished, back, or to the suspects. Without `isolates` there are
    none: at a token endpoint no line can take others down with it, and what was charged waits behind the rest.
    """

    max_attempts: int
    leases: list[HeldLease] = field(default_factory=list)
    retried: int = 0
    isolates: bool = True
    _isolating: HeldLease | None = None

    @property
    def in_flight(self) -> int:
        return sum(len(lease.in_flight) for lease in self.leases)

    @property
    def waiting(self) -> int:
        """Lines that could be started, now or once their lease is renewed."""
        return sum(lease.waiting for lease in self.leases)

    def unfinished(self) -> Iterator[Line]:
        """All lines that have no end yet."""
        for lease in self.leases:
            yield from lease.in_flight.values()
            yield from lease.fresh
            yield from lease.isolated
            for group in lease.suspects:
                yield from group

    def add(self, lease: HeldLease, now: float) -> None:
        """A new lease. Lines whose attempts are already spent, by the broker's account, become dead letters at once."""
        self.leases.append(lease)
        spent = [line for group in lease.suspects for line in group if line.attempts >= self.max_attempts]
        lease.forget({line.idx for line in spent})
        for line in spent:
            self._bury(lease, line, now)
        while lease.suspects and not self.isolates:
            lease.fresh.extend(lease.suspects.popleft())

    def start(self, now: float) -> tuple[HeldLease, Line] | None:
        """The next line for the engine, now in flight; None when none may start at this moment."""
        self._end_isolation()
        if self._isolating is None and (ripe := self._ripe(now)) is not None:
            if self.in_flight:
                return None  # nothing new until the engine is empty
            ripe.isolated = ripe.suspects.popleft()
            self._isolating = ripe
            event("lines.isolated", shard=ripe.shard_id, lines=len(ripe.isolated))
        lease = self._isolating or self._freshest(now)
        if lease is None or not lease.may_start(now):
            return None
        if self._isolating is not None and not lease.isolated:
            return None
        if self.in_flight >= self._most_beside(lease):
            return None
        line = lease.isolated.pop(0) if self._isolating is not None else lease.fresh.popleft()
        lease.in_flight[line.idx] = line
        return lease, line

    def finish(self, lease: HeldLease, line: Line, finished: Finished, now: float) -> None:
        """The engine answered, for good or ill."""
        lease.in_flight.pop(line.idx)
        self._keep(lease, finished, now)
        self._end_isolation()

    def put_back(self, lease: HeldLease, line: Line) -> None:
        """The line was not run, through no fault of its own: first in the queue again."""
        lease.in_flight.pop(line.idx)
        self.retried += 1
        if lease.is_lost:
            pass
        elif lease is self._isolating:
            lease.isolated.insert(0, line)
        elif line.attempts and self.isolates:
            lease.suspects.appendleft([line])
        else:
            lease.fresh.appendleft(line)
        self._end_isolation()

    def put_last(self, lease: HeldLease, line: Line) -> None:
        """The line got no answer, and nobody knows whose fault that is: the others go first, so that it holds none of them up."""
        lease.in_flight.pop(line.idx)
        self.retried += 1
        if not lease.is_lost:
            lease.fresh.append(line)

    def charge(self, lease: HeldLease, line: Line, fault: Fault, now: float) -> None:
        """The engine lives, and the line failed in it: one attempt spent; the next one alone, or a dead letter."""
        lease.in_flight.pop(line.idx)
        line.attempts += 1
        line.last_fault = (fault.code, fault.message)
        if line.attempts >= self.max_attempts:
            self._bury(lease, line, now)
        elif not lease.is_lost:
            self.retried += 1
            if self.isolates:
                lease.suspects.append([line])
            else:
                lease.fresh.append(line)
        self._end_isolation()

    def crash(self, lines: Iterable[tuple[HeldLease, Line]], message: str, now: float) -> None:
        """The engine died with these lines in it: each has spent an attempt, and any of them may be the reason."""
        held = list(lines)
        groups: dict[int, tuple[HeldLease, list[Line]]] = {}
        for lease, line in held:
            lease.in_flight.pop(line.idx)
            line.attempts += 1
            line.last_fault = ("worker_crash", message)
            if len(held) == 1 and line.attempts >= self.max_attempts:
                self._bury(lease, line, now)
            elif not lease.is_lost:
                self.retried += 1
                groups.setdefault(id(lease), (lease, []))[1].append(line)
        size = -(-len(held) // _GROUPS)
        for lease, group in groups.values():
            lease.suspects.extend(group[at : at + size] for at in range(0, len(group), size))
        if self._isolating is not None:
            rest, self._isolating.isolated = self._isolating.isolated, []
            self._isolating.suspects.extend([rest] if rest else [])
            self._isolating = None

    def abandon(self, lease: HeldLease, *, is_void: bool) -> None:
        """Start nothing more of this lease; with `is_void` also drop what is finished: nobody will take it."""
        lease.is_lost = True
        lease.is_void = lease.is_void or is_void
        lease.drop_waiting()
        if lease.is_void:
            lease.take_finished()
        self._end_isolation()

    def close(self, lease: HeldLease) -> None:
        """Let go of a lease that is worked off and committed."""
        self.leases.remove(lease)

    def _ripe(self, now: float) -> HeldLease | None:
        """A lease with nothing left but suspects: only then is it worth to empty the engine for them."""
        leases = self.leases
        return next((held for held in leases if held.suspects and not held.fresh and held.may_start(now)), None)

    def _freshest(self, now: float) -> HeldLease | None:
        return next((held for held in self.leases if held.fresh and held.may_start(now)), None)

    def _most_beside(self, lease: HeldLease) -> float:
        """How many lines may be in the engine while one of this lease is: the least that any lease with a line in it allows."""
        limits = [each.concurrency for each in self.leases if each.in_flight or each is lease]
        return min((limit for limit in limits if limit is not None), default=math.inf)

    def _end_isolation(self) -> None:
        lease = self._isolating
        if lease is not None and not lease.isolated and not lease.in_flight:
            self._isolating = None

    def _keep(self, lease: HeldLease, finished: Finished, now: float) -> None:
        if not lease.is_void:
            lease.keep(finished, now)

    def _bury(self, lease: HeldLease, line: Line, now: float) -> None:
        code = line.last_fault[0] if line.last_fault else "worker_crash"
        event("line.dead_lettered", shard=lease.shard_id, idx=line.idx, attempts=line.attempts, code=code)
        self._keep(lease, dead_letter(line), now)
