"""What a model really did on an accelerator, summed up in broker_measured for the planner.

All workers of a model add to one row: it is locked by one statement, the last of a transaction but its commit.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncSession

from broker.control.convert import hardware
from broker.tables import Measured
from jobs.types import LineUsage
from markets.offer_record import offer_from_record
from markets.tables import RentalRow

# More than any model reads or writes for one line, and than a part waits for its commit: what is told beyond is not believed,
# for one such number would be the speed that all later plans go by.
_MOST_TOKENS = 10_000_000
_MOST_BUSY_MS = 86_400_000

SUMS = ("prompt_tokens", "completion_tokens", "busy_ms", "loads", "load_ms")


class Machine(NamedTuple):
    """What a speed is measured of."""

    model: str
    precision: str
    accelerator: str


def machine_of(model: str, precision: str, facts: Mapping[str, Any]) -> Machine:
    """`facts` are a rental's, frozen when it was placed."""
    return Machine(model, precision, hardware(offer_from_record(facts)))


async def measured_load(session: AsyncSession, rental: RentalRow, load_ms: int) -> None:
    """A worker of `rental` became ready `load_ms` after its hello."""
    machine = machine_of(rental.model, rental.precision, rental.facts)
    await _add(session, {machine: {"loads": 1, "load_ms": max(0, load_ms)}})


def work_of(usage: Sequence[LineUsage], counters: Mapping[str, int], slowed: float = 1.0) -> Counter[str]:
    """Committed lines and the engine time they took. Wasted tokens are left out: the plan needs useful speed. `slowed` is how
    much longer it took because few requests were let in at once: the speed of the whole machine is measured."""
    return Counter(
        prompt_tokens=sum(min(line.prompt_tokens, _MOST_TOKENS) for line in usage),
        completion_tokens=sum(min(line.completion_tokens, _MOST_TOKENS) for line in usage),
        busy_ms=round(min(counters.get("busy_ms", 0), _MOST_BUSY_MS) / slowed),
    )


async def measured_work(session: AsyncSession, done: Mapping[Machine, Mapping[str, int]]) -> None:
    """What was committed (`work_of`), by machine."""
    await _add(session, done)


async def _add(session: AsyncSession, sums: Mapping[Machine, Mapping[str, int]]) -> None:
    """To the models' rows, in the order that everybody keeps; whoever is first makes a row, and many may be first at once."""
    insert = sqlite.insert if session.get_bind().dialect.name == "sqlite" else postgresql.insert
    rows = [{**machine._asdict(), **dict.fromkeys(SUMS, 0), **sums[machine]} for machine in sorted(sums)]
    fresh = insert(Measured).values(rows)
    table = Measured.__table__.c  # type: ignore[attr-defined]
    added = {name: table[name] + fresh.excluded[name] for name in SUMS}
    await session.execute(fresh.on_conflict_do_update(index_elements=["model", "precision", "accelerator"], set_=added))
