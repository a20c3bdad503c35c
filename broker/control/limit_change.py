"""What follows from a new `max_usd`: a batch that was stopped at its limit goes on, one that is over it now is stopped."""

from __future__ import annotations

from sqlalchemy.ext.asyncio import AsyncSession

from broker.control.ceiling import stop
from broker.control.convert import usd
from broker.control.snapshot import max_nano
from broker.costs import batch_costs
from broker.tables import STOPPED, Waiting
from jobs.tables import Batch


async def limit_changed(session: AsyncSession, batch: Batch, now_us: int) -> None:
    """Lift or set the stop. Whether the room under the new limit is enough is the planner's and the ceiling's question:
    both look again at once."""
    waiting = await session.get(Waiting, batch.id)
    if waiting is not None and waiting.plan == STOPPED:
        await session.delete(waiting)
        await session.flush()
    limit = max_nano((batch.wishes or {}).get("max_usd"))
    if limit is None:
        return
    spent = (await batch_costs(session, [batch.id]))[batch.id].nano
    if spent and spent >= limit:
        reason = f"max_usd: was set to ${usd(limit)}, and ${usd(spent)} is spent already; raise it to go on"
        await stop(session, batch.id, reason, now_us)
