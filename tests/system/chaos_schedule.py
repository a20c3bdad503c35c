"""What goes wrong in a world, drawn from its seed: the same seed, the same faults in the same order."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Where = Literal["agent", "broker", "machine", "sandbox", "ground"]
Ground = Literal["sqlite", "postgres"]

BROKER_POINTS = (
    "commit.in_txn",
    "commit.before_ack",
    "finalise",
    "finalise.before_txn",
    "place.after_intent",
    "place.after_create",
)
GROUND_POINTS = (
    "leader.kill",
    "leader.freeze",
    "database.kill",
    "database.cut",
    "store.cut",
    "front.cut",
    "front.tear",
)
AGENT_POINTS = ("agent.before_put", "agent.after_put")
# What each mutation removes must be seen in this field of the report.
NOTICED_IN = {"fence+disjoint": "duplicated", "sweeper": "leaked", "hold": "ledger_mismatches"}
# A fault may come too late, or meet nobody; one that was planned for so many worlds has struck in one of them.
ENOUGH = 4


@dataclass(frozen=True)
class Fault:
    """`point` of `where`, at its n-th occurrence (failpoints), or `after` committed lines (signals from outside).

    broker:  a failpoint of the broker's, which SIGKILLs itself there; it is started again
    agent:   a failpoint of the next agent's, likewise; the broker must rent another machine
    machine: `kill` (SIGKILL to an agent), `freeze` (SIGSTOP until its lease is another's, then SIGCONT: a zombie), `preempt`
    sandbox: `create_then_500`: the provider creates the machine and answers with an error
    ground:  `leader.kill`, `leader.freeze` (SIGSTOP until another leads, then SIGCONT), `database.kill` (SIGKILL to the
             postmaster, started again), `database.cut` (the kernel drops for a while what the leader and the database send
             each other), `store.cut` (what all brokers and the object store do), `front.cut` (what agents and all brokers
             do), `front.tear` (their connections are reset)
    """

    where: Where
    point: str
    n: int = 1
    after: int = 0

    @property
    def kind(self) -> str:
        return f"{self.where}:{self.point}"

    @property
    def is_outside(self) -> bool:
        """A world sees whether it struck."""
        return self.where in ("machine", "ground")

    @property
    def is_cut(self) -> bool:
        return self.point.endswith(".cut")

    def __str__(self) -> str:
        return f"{self.kind}:{self.n}" + (f"@{self.after}" if self.after else "")


@dataclass(frozen=True)
class Schedule:
    seed: int
    lines: int
    faults: tuple[Fault, ...]
    mutate: str | None = None


def must_notice(mutation: str) -> str:
    return NOTICED_IN[mutation]


def planned(schedules: Iterable[Schedule]) -> Counter[str]:
    """How often each kind of fault from outside is to strike."""
    return Counter(fault.kind for schedule in schedules for fault in schedule.faults if fault.is_outside)


def never_struck(wanted: Counter[str], struck: Counter[str]) -> list[str]:
    """Kinds of the ground's faults that were planned often enough and never seen: a run without them proves nothing about them.
    (Whether there is a machine to strike is the plan's business.)"""
    return sorted(
        kind for kind, times in wanted.items() if kind.startswith("ground:") and times >= ENOUGH and not struck[kind]
    )


def draw(seed: int, mutate: str | None = None, ground: Ground = "sqlite") -> Schedule:
    """Two or three faults, at least one of them a kill of the broker or of an agent at a named point. On PostgreSQL one or
    two more, of what only that ground can suffer."""
    source = random.Random(seed)
    lines = source.randrange(60, 121)
    faults = [_named(source, seed)]
    faults += [_any(source, lines) for _ in range(source.randrange(1, 3))]
    if ground == "postgres":
        # in turn, so that few seeds already have all of them
        points = [GROUND_POINTS[seed % len(GROUND_POINTS)], *source.sample(GROUND_POINTS, source.randrange(2))]
        faults += [Fault("ground", point, after=source.randrange(1, lines * 2 // 3)) for point in points]
    if mutate == "fence+disjoint":
        faults = [Fault("machine", "freeze", after=after) for after in (4, 24, 40)]
    elif mutate == "sweeper":
        faults = [Fault("broker", "place.after_create")]
    return Schedule(seed, lines, tuple(faults), mutate)


def _named(source: random.Random, seed: int) -> Fault:
    """The named points in turn, so that few seeds already visit all of them."""
    points = [("broker", name) for name in BROKER_POINTS] + [("agent", name) for name in AGENT_POINTS]
    where, point = points[seed % len(points)]
    last = 1 if point.startswith(("place", "finalise")) else 6
    return Fault(where, point, n=source.randrange(1, last + 1))  # type: ignore[arg-type]


def _any(source: random.Random, lines: int) -> Fault:
    match source.randrange(6):
        case 0:
            return Fault("broker", source.choice(BROKER_POINTS), n=source.randrange(1, 4))
        case 1:
            return Fault("agent", source.choice(AGENT_POINTS), n=source.randrange(1, 4))
        case 2:
            return Fault("sandbox", "create_then_500")
        case 3:
            return Fault("machine", "freeze", after=source.randrange(1, lines // 2))
        case 4:
            return Fault("machine", "preempt", after=source.randrange(1, lines * 2 // 3))
        case _:
            return Fault("machine", "kill", after=source.randrange(1, lines * 2 // 3))
