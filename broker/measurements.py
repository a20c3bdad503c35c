"""What a model really did on an accelerator, summed up in broker_measured for the planner."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from broker.control.convert import hardware
from broker.tables import Measured
from jobs.types import LineUsage
from markets.offer_record import offer_from_record
from markets.tables import RentalRow


async def measured_load(session: AsyncSession, rental: RentalRow, load_ms: int) -> None:
    """A worker of `rental` became ready `load_ms` after its hello."""
    row = await _row(session, rental)
    row.loads += 1
    row.load_ms += max(0, load_ms)


async def measured_work(
    session: AsyncSession, rental: RentalRow, usage: Sequence[LineUsage], counters: Mapping[str, int]
) -> None:
    """Committed lines and the engine time they took. Wasted tokens are left out: the plan needs useful speed."""
    row = await _row(session, rental)
    row.prompt_tokens += sum(line.prompt_tokens for line in usage)
    row.completion_tokens += sum(line.completion_tokens for line in usage)
    row.busy_ms += counters.get("busy_ms", 0)


async def _row(session: AsyncSession, rental: RentalRow) -> Measured:
    label = hardware(offer_from_record(rental.facts))
    statement = select(Measured).where(
        col(Measured.model) == rental.model,
        col(Measured.precision) == rental.precision,
        col(Measured.accelerator) == label,
    )
    row: Measured | None = await session.scalar(statement.with_for_update())
    if row is None:
        row = Measured(
            model=rental.model,
            precision=rental.precision,
            accelerator=label,
            prompt_tokens=0,
            completion_tokens=0,
            busy_ms=0,
            loads=0,
            load_ms=0,
        )
        session.add(row)
        await session.flush()
    return row
