"""Where a batch runs and ran: one row a rental, with its worker, its lines and its share of the cost."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from broker.api import shapes
from broker.control.convert import usd
from broker.costs import batch_costs, batch_rentals
from broker.tables import Worker

SECOND_US = 1_000_000


async def placements(session: AsyncSession, batch_id: str) -> list[shapes.Placement]:
    """All rentals that served the batch or were rented for it, oldest first."""
    rows = await batch_rentals(session, batch_id)
    cost = (await batch_costs(session, [batch_id]))[batch_id]
    found = await session.scalars(select(Worker).where(col(Worker.rental).in_([row.id for row in rows])))
    workers = {worker.rental: worker for worker in found}
    result = []
    for row in rows:
        lines, nano = cost.by_rental.get(row.id, (0, 0))
        worker = workers.get(row.id)
        result.append(
            shapes.Placement(
                rental=row.id,
                offer_key=row.offer_key,
                market=row.market,
                country=row.facts.get("country"),
                location_tier=row.facts["location_tier"],
                state=row.state,
                worker=worker.state if worker else None,
                usd_per_hour=usd(row.price_nano_hour),
                lines=lines,
                usd=usd(nano),
                started_at=None if row.started_us is None else row.started_us // SECOND_US,
                ended_at=None if row.ended_us is None else row.ended_us // SECOND_US,
                end_reason=row.end_reason,
                exit_status=row.exit_status,
                facts={name: str(value) for name, value in row.market_facts.items()},
            )
        )
    return result
