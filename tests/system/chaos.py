"""Chaos: real brokers, a real sandbox and real agents, killed with SIGKILL at named points, in random schedules.

`python tests/system/chaos.py --seeds 5 [--first 1] [--ground postgres] [--mutate fence+disjoint|sweeper|hold]` runs one
world a seed and prints, last, one JSON object: {"seeds", "lost", "duplicated", "leaked", "ledger_mismatches",
"secrets_leaked"}. All zero is what the broker promises. On PostgreSQL two brokers share the database and an S3 server,
and leaders, database and cables fail, too. A mutation removes a safety check from the broker and must make its field non-zero.

Before that, on stderr, it says how often each fault from outside struck: {"planned", "struck", "packets_dropped"}. A cut
counts as one when the kernel dropped something. A kind of the ground's that was planned for several worlds and never struck
fails the run.

Exit status: 0 when all is zero (or, with --mutate, when it was noticed), else 1; 2 where this machine lacks what it needs.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from itertools import count
from math import inf
from pathlib import Path
from typing import get_args

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parent))

from chaos_replicas import SharedWorld
from chaos_schedule import Ground, Schedule, draw, must_notice, never_struck, planned
from chaos_world import World

from tests.support.islands import NoNetwork
from tests.support.s3_server import s3_server

FIELDS = ("lost", "duplicated", "leaked", "ledger_mismatches", "secrets_leaked")
MakeWorld = Callable[[Path, Schedule], World]


@dataclass(frozen=True)
class Outcome:
    """What one world ended with. `lost`: lines without an answer; `duplicated`: lines counted twice; `leaked`: machines
    or processes that outlived their use; `ledger_mismatches`: rentals whose books differ from the provider's invoice,
    or findings of the books' own audit; `secrets_leaked`: logs, tables and objects in which a secret was written down."""

    lost: int
    duplicated: int
    leaked: int
    ledger_mismatches: int
    secrets_leaked: int
    kills: int
    notes: tuple[str, ...]
    struck: dict[str, int]
    dropped: int
    seconds: int

    @property
    def is_clean(self) -> bool:
        return not any(getattr(self, name) for name in FIELDS)


@contextmanager
def worlds_on(ground: Ground) -> Iterator[MakeWorld]:
    """How a world on this ground is made. On PostgreSQL each has a database server of its own, and all one S3 server."""
    if ground == "sqlite":
        yield World
        return
    with tempfile.TemporaryDirectory(prefix="chaos-s3-") as folder, s3_server(Path(folder) / "s3") as s3:
        yield partial(SharedWorld, s3=s3)


def run_world(schedule: Schedule, make: MakeWorld, keep: bool) -> Outcome:
    folder = Path(tempfile.mkdtemp(prefix=f"chaos-{schedule.seed}-"))
    began = time.monotonic()
    world = make(folder, schedule)
    try:
        world.run()
        found = world.measure()
    finally:
        world.end()
    outcome = Outcome(
        **found,
        kills=world.kills,
        notes=tuple(world.notes),
        struck=dict(world.struck),
        dropped=world.dropped,
        seconds=round(time.monotonic() - began),
    )
    told = {"seed": schedule.seed, "faults": [str(fault) for fault in schedule.faults], **asdict(outcome)}
    print(json.dumps(told), file=sys.stderr, flush=True)
    if outcome.is_clean and not keep:
        shutil.rmtree(folder, ignore_errors=True)
    else:
        print(f"seed {schedule.seed}: kept {folder}", file=sys.stderr)
    return outcome


def run_worlds(schedules: Sequence[Schedule], asked: argparse.Namespace) -> list[Outcome]:
    """As many of them as are begun in time. NoNetwork: brokers cannot be cut off on this machine."""
    with worlds_on(asked.ground) as make, ThreadPoolExecutor(asked.workers) as pool:
        give_up = time.monotonic() + asked.within

        def run(number: int, schedule: Schedule) -> Outcome | None:
            if number > asked.at_least and time.monotonic() > give_up:
                return None
            return run_world(schedule, make, asked.keep)

        return [outcome for outcome in pool.map(run, count(1), schedules) if outcome is not None]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first", type=int, default=1)
    parser.add_argument("--ground", default="sqlite", choices=get_args(Ground))
    parser.add_argument("--mutate", default=None, choices=["fence+disjoint", "sweeper", "hold"])
    parser.add_argument("--workers", type=int, default=3, help="worlds at a time")
    parser.add_argument(
        "--within", type=float, default=inf, help="seconds after which no seed is begun beyond --at-least"
    )
    parser.add_argument("--at-least", type=int, default=1, help="seeds that are run however long they take")
    parser.add_argument("--keep", action="store_true", help="keep every world's folder")
    asked = parser.parse_args()
    schedules = [draw(seed, asked.mutate, asked.ground) for seed in range(asked.first, asked.first + asked.seeds)]
    try:
        outcomes = run_worlds(schedules, asked)
    except NoNetwork as refused:
        print(f"chaos on {asked.ground}: {refused}", file=sys.stderr)
        return 2
    if len(outcomes) < len(schedules):
        print(f"{len(schedules) - len(outcomes)} of {len(schedules)} seeds were not begun in time", file=sys.stderr)
    total = {"seeds": len(outcomes)} | {name: sum(getattr(o, name) for o in outcomes) for name in FIELDS}
    missed = [] if asked.mutate else tell_of_faults(schedules[: len(outcomes)], outcomes)
    print(json.dumps(total))
    if asked.mutate:
        return 0 if total[must_notice(asked.mutate)] else 1
    return 0 if all(outcome.is_clean for outcome in outcomes) and not missed else 1


def tell_of_faults(schedules: Sequence[Schedule], outcomes: Sequence[Outcome]) -> list[str]:
    """Says how often which fault struck; the kinds that should have and did not."""
    wanted, struck = planned(schedules), Counter[str]()
    for outcome in outcomes:
        struck.update(outcome.struck)
    dropped = sum(outcome.dropped for outcome in outcomes)
    told = {"planned": dict(sorted(wanted.items())), "struck": dict(sorted(struck.items())), "packets_dropped": dropped}
    print(json.dumps(told), file=sys.stderr)
    missed = never_struck(wanted, struck)
    for kind in missed:
        print(f"{kind} was planned {wanted[kind]} times and never struck: nothing is known about it", file=sys.stderr)
    return missed


if __name__ == "__main__":
    sys.exit(main())
