"""Budgets: what a project may commit. Without a grant there is no limit."""

from __future__ import annotations

from sqlalchemy.ext.asyncio import AsyncSession

from ledger import accounts
from ledger.book import post
from ledger.errors import MalformedEvent
from ledger.event import Dims, Event, Exists, Line, Posted
from ledger.positions import remaining

__all__ = ["grant", "remaining"]


async def grant(
    session: AsyncSession,
    *,
    grant_id: str,
    project: str,
    nano: int,
    occurred_at_us: int,
    actor: str,
    recorded_at_us: int | None = None,
) -> Posted | Exists:
    """Give `project` another `nano` nano-USD to commit, on top of what was granted before.

    The same `grant_id` again posts nothing. Raises KeyReused when it was used with other content, MalformedEvent when
    `nano` is not positive.
    """
    if nano <= 0:
        raise MalformedEvent(f"grant {grant_id}: {nano} nano-USD; a grant is positive")
    event = Event(
        key=f"budget.grant:{grant_id}",
        kind="budget.grant",
        occurred_at_us=occurred_at_us,
        actor=actor,
        dims=Dims(project=project),
        lines=(Line(account=accounts.budget(project), nano=nano), Line(account=accounts.CONTRA, nano=-nano)),
    )
    return await post(session, event, recorded_at_us=occurred_at_us if recorded_at_us is None else recorded_at_us)
