"""What a batch has cost so far: the rentals' accruals, allotted by the tokens of the lines that each served.

A projection of the ledger and of the committed parts, never a row: the shares of a rental always sum to its accrual.
A rental that served nothing yet (booting, or lost before its first commit) is borne evenly by the batches that it was
rented for: waste is somebody's cost.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from broker.token_costs import bought_nano
from jobs.tables import Batch, Part
from ledger.allot import allot
from ledger.tables import Entry, Posting
from markets.tables import RentalRow


@dataclass
class BatchCost:
    """A batch's accrued cost in nano-USD and, by rental, how many lines it committed there and its share."""

    nano: int = 0
    by_rental: dict[str, tuple[int, int]] = field(default_factory=dict)


@dataclass
class _Served:
    lines: int
    tokens: int


async def batch_costs(session: AsyncSession, batch_ids: Sequence[str]) -> dict[str, BatchCost]:
    """The cost of each of `batch_ids`; a batch that nothing was spent on has 0."""
    costs = {batch_id: BatchCost() for batch_id in batch_ids}
    rows = await _rentals_of(session, batch_ids)
    served = await _served(session, [row.id for row in rows])
    accrued = await accrued_by_rental(session, [row.id for row in rows])
    for row in rows:
        shares = rental_shares(accrued.get(row.id, 0), served.get(row.id, {}), row.purpose.get("batches", []))
        for batch_id, nano in shares.items():
            if batch_id in costs:
                lines = served.get(row.id, {}).get(batch_id, _Served(0, 0)).lines
                costs[batch_id].by_rental[row.id] = (lines, nano)
                costs[batch_id].nano += nano
    return costs


def rental_shares(total_nano: int, served: dict[str, _Served], rented_for: Sequence[str]) -> dict[str, int]:
    """How a rental's accrual divides among batches: by tokens served, or evenly among those that it was rented for."""
    weights = {batch: each.tokens for batch, each in sorted(served.items())} or dict.fromkeys(sorted(rented_for), 1)
    return dict(zip(weights, allot(total_nano, list(weights.values())), strict=True)) if weights else {}


async def accrued_by_rental(session: AsyncSession, rental_ids: Sequence[str]) -> dict[str, int]:
    """Net accrued nano-USD of each rental: what was booked as expense, corrections included."""
    query = (
        select(col(Entry.rental), func.sum(col(Posting.nano)))
        .join(Posting, col(Posting.entry_id) == col(Entry.id))
        .where(col(Entry.rental).in_(rental_ids), col(Posting.account).startswith("Expenses:"))
        .group_by(col(Entry.rental))
    )
    return {rental: int(nano) for rental, nano in (await session.execute(query)).all() if rental is not None}


async def batch_rentals(session: AsyncSession, batch_id: str) -> list[RentalRow]:
    """Every rental that served the batch or was rented for it, oldest first."""
    return await _rentals_of(session, [batch_id])


async def _rentals_of(session: AsyncSession, batch_ids: Sequence[str]) -> list[RentalRow]:
    worked = set(
        await session.scalars(select(col(Part.placement_id)).where(col(Part.batch_id).in_(batch_ids)).distinct())
    )
    projects = set(await session.scalars(select(col(Batch.project)).where(col(Batch.id).in_(batch_ids)).distinct()))
    query = (
        select(RentalRow)
        .where(col(RentalRow.project).in_(projects))
        .order_by(col(RentalRow.created_us), col(RentalRow.id))
    )
    wanted = set(batch_ids)
    return [
        row
        for row in await session.scalars(query)
        if row.id in worked or wanted.intersection(row.purpose.get("batches", ()))
    ]


async def _served(session: AsyncSession, rental_ids: Sequence[str]) -> dict[str, dict[str, _Served]]:
    """By rental and batch: lines and tokens of counted parts. A line without tokens still weighs one."""
    query = (
        select(
            col(Part.placement_id),
            col(Part.batch_id),
            func.sum(col(Part.completed) + col(Part.failed)),
            func.sum(col(Part.prompt_tokens) + col(Part.completion_tokens)),
        )
        .where(col(Part.placement_id).in_(rental_ids), col(Part.counted).is_(True))
        .group_by(col(Part.placement_id), col(Part.batch_id))
    )
    found: dict[str, dict[str, _Served]] = {}
    for rental, batch, lines, tokens in (await session.execute(query)).all():
        found.setdefault(rental, {})[batch] = _Served(int(lines), max(int(lines), int(tokens)))
    # where tokens were bought, each batch bears what its own did cost, class by class
    for rental, by_batch in (await bought_nano(session, rental_ids)).items():
        of = found.setdefault(rental, {})
        for batch, nano in by_batch.items():
            of[batch] = _Served(of[batch].lines if batch in of else 0, nano)
    return found
