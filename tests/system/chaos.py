"""Chaos: real brokers, a real sandbox and real agents, killed with SIGKILL at named points, in random schedules.

`python tests/system/chaos.py --seeds 5 [--first 1] [--ground postgres] [--mutate fence+disjoint|sweeper|hold]` runs one
world a seed and prints, last, one JSON object: {"seeds", "lost", "duplicated", "leaked", "ledger_mismatches",
"secrets_leaked"}. All zero is what the broker promises. On PostgreSQL two brokers share the database and an S3 server,
and leaders, database and cables fail, too. A mutation removes a safety check from the broker and must make its field non-zero.

Exit status: 0 when all is zero (or, with --mutate, when it was noticed), else 1.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
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
from chaos_schedule import Ground, Schedule, draw, must_notice
from chaos_world import World

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
    world = make(folder, schedule)
    try:
        world.run()
        outcome = Outcome(**world.measure(), kills=world.kills, notes=tuple(world.notes))
    finally:
        world.end()
    told = {"seed": schedule.seed, "faults": [str(fault) for fault in schedule.faults], **asdict(outcome)}
    print(json.dumps(told), file=sys.stderr, flush=True)
    if outcome.is_clean and not keep:
        shutil.rmtree(folder, ignore_errors=True)
    else:
        print(f"seed {schedule.seed}: kept {folder}", file=sys.stderr)
    return outcome


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
    with worlds_on(asked.ground) as make, ThreadPoolExecutor(asked.workers) as pool:
        give_up = time.monotonic() + asked.within

        def run(number: int, schedule: Schedule) -> Outcome | None:
            if number > asked.at_least and time.monotonic() > give_up:
                return None
            return run_world(schedule, make, asked.keep)

        outcomes = [outcome for outcome in pool.map(run, count(1), schedules) if outcome is not None]
    if len(outcomes) < len(schedules):
        print(f"{len(schedules) - len(outcomes)} of {len(schedules)} seeds were not begun in time", file=sys.stderr)
    total = {"seeds": len(outcomes)} | {name: sum(getattr(o, name) for o in outcomes) for name in FIELDS}
    print(json.dumps(total))
    if asked.mutate:
        return 0 if total[must_notice(asked.mutate)] else 1
    return 0 if all(outcome.is_clean for outcome in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
