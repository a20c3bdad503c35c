"""Limits of the budget tree's nodes, in the books: what each may commit, and what counts against it.

A limit is the balance of `Memo:Limit:<scope>`; each change is an entry, the difference to before. What counts against a node
is kept by `ledger.standing` beside each entry that names it, and recomputed by the audit.
"""

from __future__ import annotations

import msgspec
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from ledger import accounts
from ledger.book import lock, post
from ledger.event import Dims, Event, Exists, Facts, Line, Posted
from ledger.tables import Posting, ScopeUse


async def set_limit(
    session: AsyncSession,
    *,
    account_of: str,
    unit: str,
    nano: int,
    occurred_at_us: int,
    actor: str,
    approval: str | None = None,
    project: str | None = None,
) -> Posted | Exists | None:
    """Make `nano` the limit of the node that `account_of` stands for; None when it is that already."""
    await lock(session)
    account = accounts.limit(account_of)
    query = select(func.coalesce(func.sum(col(Posting.nano)), 0), func.count()).where(
        col(Posting.account) == account, col(Posting.unit) == unit
    )
    before, changes = (await session.execute(query)).one()
    change = nano - int(before)
    if change == 0:
        return None
    event = Event(
        key=f"limit:{account.removeprefix('Memo:Limit:')}:{unit}:{int(changes) + 1}",
        kind="budget.grant",
        occurred_at_us=occurred_at_us,
        actor=actor,
        dims=Dims(project=project),
        lines=(
            Line(account=account, nano=change, unit=unit),
            Line(account=accounts.CONTRA, nano=-change, unit=unit),
        ),
        facts=msgspec.UNSET if approval is None else Facts(approval=approval),
    )
    return await post(session, event, recorded_at_us=occurred_at_us)


async def uses(session: AsyncSession, scope: str, unit: str) -> dict[str, int]:
    """Nano by window: `held`, `all`, and each month that something was booked in."""
    query = select(col(ScopeUse.window), col(ScopeUse.nano)).where(
        col(ScopeUse.scope) == scope, col(ScopeUse.unit) == unit
    )
    return {str(row.window): int(row.nano) for row in await session.execute(query)}
