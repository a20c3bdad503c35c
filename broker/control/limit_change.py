"""What follows from a new `max_usd`: a batch that was stopped at its limit goes on, one that is over it now is stopped, and
a limit that needs a second person is not set behind that person's back."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from broker.approvals import approval_of, needed_because, withdraw
from broker.control.ceiling import stop
from broker.control.convert import usd
from broker.control.snapshot import max_nano
from broker.costs import batch_costs
from broker.project_limits import project_limits
from broker.settings import Settings
from broker.tables import STOPPED, Quote, Waiting
from jobs.tables import Batch


async def limit_changed(session: AsyncSession, batch: Batch, now_us: int) -> None:
    """Lift or set the stop. Whether the room under the new limit is enough is the planner's and the ceiling's question:
    both look again at once. A batch that has not begun is looked at anew, and proposed anew if it needs approval."""
    if batch.status == "validating":
        await withdraw(session, batch.id)
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


async def unapproved(session: AsyncSession, settings: Settings, batch: Batch, wanted: str | None) -> str | None:
    """Why a batch under way may not get this `max_usd`, or None: it began without a quote because its limit needed no
    approval, and with the new one it would have. A lower limit is always allowed."""
    before, after = max_nano((batch.wishes or {}).get("max_usd")), max_nano(wanted)
    is_raised = before is not None and (after is None or after > before)
    if batch.status == "validating" or not is_raised:
        return None
    earlier = await approval_of(session, batch.id)
    if earlier is not None and earlier.outcome == "approved":
        return None
    first = select(col(Quote.cost_nano)).where(col(Quote.batch) == batch.id).order_by(col(Quote.created_us)).limit(1)
    limits = await project_limits(session, settings, batch.project)
    return needed_because(above_nano=limits.approve_above_nano, quote_nano=await session.scalar(first), max_nano=after)
