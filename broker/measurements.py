"""What a model really did on an accelerator, summed up in broker_measured for the planner.

All workers of a model add to one row: it is locked by one statement, the last of a transaction but its commit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncSession

from broker.control.convert import hardware
from broker.tables import Measured
from jobs.types import LineUsage
from markets.offer_record import offer_from_record
from markets.tables import RentalRow

SUMS = ("prompt_tokens", "completion_tokens", "busy_ms", "loads", "load_ms")


async def measured_load(session: AsyncSession, rental: RentalRow, load_ms: int) -> None:
    """A worker of `rental` became ready `load_ms` after its hello."""
    await _add(session, rental, {"loads": 1, "load_ms": max(0, load_ms)})


async def measured_work(
    session: AsyncSession, rental: RentalRow, usage: Sequence[LineUsage], counters: Mapping[str, int]
) -> None:
    """Committed lines and the engine time they took. Wasted tokens are left out: the plan needs useful speed."""
    sums = {
        "prompt_tokens": sum(line.prompt_tokens for line in usage),
        "completion_tokens": sum(line.completion_tokens for line in usage),
        "busy_ms": counters.get("busy_ms", 0),
    }
    await _add(session, rental, sums)


async def _add(session: AsyncSession, rental: RentalRow, sums: Mapping[str, int]) -> None:
    """To the model's row, which whoever is first makes: many may be first at once."""
    label = hardware(offer_from_record(rental.facts))
    insert = sqlite.insert if session.get_bind().dialect.name == "sqlite" else postgresql.insert
    fresh = insert(Measured).values(
        model=rental.model, precision=rental.precision, accelerator=label, **(dict.fromkeys(SUMS, 0) | dict(sums))
    )
    table = Measured.__table__.c  # type: ignore[attr-defined]
    added = {name: table[name] + fresh.excluded[name] for name in sums}
    await session.execute(fresh.on_conflict_do_update(index_elements=["model", "precision", "accelerator"], set_=added))
