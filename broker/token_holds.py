"""Tokens set aside for batches, where a budget in tokens is about them: the most that each can use, until it has ended."""

from __future__ import annotations

import structlog
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from broker.budget_tables import BudgetRow
from broker.budgets import Placement, admit, budgets_of, nodes_above, projects_in
from jobs import batches
from jobs.tables import Batch
from jobs.types import TERMINAL
from ledger.errors import HoldExceeded
from ledger.focus.table import period_bounds
from ledger.holds import extend_hold, hold, open_hold, open_holds, post_part, void_hold
from ledger.standing import closed_periods
from ledger.tables import HoldState
from ledger.units import MTOKEN, NANO_PER_TOKEN

log = structlog.get_logger()
ACTOR = "broker.budget"
ENDED_AT_ONCE = 200  # batches that ended before the limit was set, a round


async def hold_tokens(session: AsyncSession, batch: Batch, tokens: int, *, now_us: int, actor: str) -> None:
    """Set the most tokens that a batch can use aside, where a budget in tokens is about it. Raises LimitExceeded."""
    if tokens <= 0 or not await budgets_of(session, batch.project, [batch.id], MTOKEN):
        return
    placement = Placement(batch.project, (batch.id,), tokens * NANO_PER_TOKEN, unit=MTOKEN)
    scopes = await admit(session, placement, now_us=now_us)
    await _open(session, batch, tokens, scopes, now_us, actor, now_us)


async def count_begun_before(session: AsyncSession, now_us: int) -> None:
    """A limit that is set while batches run is about them, too: their tokens are set aside from the first moment, what they
    have used already included. Those that ended before count in the month in which they ended, if it is open.

    It is a fact and asks nobody: a limit that is passed by it stops what runs.
    """
    rows = list(await session.scalars(select(BudgetRow).where(col(BudgetRow.unit) == MTOKEN)))
    projects = sorted({project for row in rows for project in await projects_in(session, row)})
    closed = await closed_periods(session) if rows else set()
    open_since_us = max((period_bounds(each)[1] * 1_000_000 for each in closed), default=0)
    for project in projects:
        held = select(col(HoldState.batch)).where(col(HoldState.unit) == MTOKEN, col(HoldState.project) == project)
        mine = select(Batch).where(
            col(Batch.project) == project, col(Batch.id).not_in(held.where(col(HoldState.batch).is_not(None)))
        )
        going = mine.where(col(Batch.in_progress_us).is_not(None), col(Batch.status).not_in(TERMINAL))
        for batch in (await session.scalars(going.order_by(col(Batch.id)))).all():
            left = await batches.remaining(session, batch.id)
            most = _used(batch) + left.input_tokens + left.output_tokens
            await _set_aside(session, batch, most, now_us, now_us)
        above = {f"project:{project}", *await nodes_above(session, project)}
        if not above.intersection(row.scope for row in rows):
            continue  # of budgets of batches and tags those that have ended are counted without a hold
        ended = func.coalesce(
            col(Batch.completed_us), col(Batch.failed_us), col(Batch.expired_us), col(Batch.cancelled_us), 0
        )
        over = mine.where(
            col(Batch.status).in_(TERMINAL),
            col(Batch.used_input_tokens) + col(Batch.used_output_tokens) > 0,
            ended >= open_since_us,
        )
        for batch in (await session.scalars(over.order_by(col(Batch.id).desc()).limit(ENDED_AT_ONCE))).all():
            at_us = _ended_us(batch)
            if await _set_aside(session, batch, _used(batch), at_us, now_us):
                await _settle(session, batch, at_us, now_us)


def _ended_us(batch: Batch) -> int:
    known = (batch.completed_us, batch.failed_us, batch.expired_us, batch.cancelled_us)
    return next((each for each in known if each is not None), batch.created_us)


def _used(batch: Batch) -> int:
    return batch.used_input_tokens + batch.used_output_tokens


async def _set_aside(session: AsyncSession, batch: Batch, tokens: int, at_us: int, now_us: int) -> bool:
    if tokens <= 0 or not await budgets_of(session, batch.project, [batch.id], MTOKEN):
        return False
    try:
        await _open(session, batch, tokens, await nodes_above(session, batch.project), at_us, ACTOR, now_us)
    except HoldExceeded as refused:  # a grant in tokens; what was used is used, and the grant stays visible as used up
        log.warning("budget.tokens_uncounted", batch=batch.id, tokens=tokens, error=str(refused))
        return False
    return True


async def _open(
    session: AsyncSession, batch: Batch, tokens: int, scopes: tuple[str, ...], at_us: int, actor: str, now_us: int
) -> None:
    await open_hold(
        session,
        hold_id=f"tokens:{batch.id}",
        nano=tokens * NANO_PER_TOKEN,
        project=batch.project,
        batch=batch.id,
        rental=None,
        offer_key=None,
        occurred_at_us=at_us,
        actor=actor,
        scopes=scopes,
        unit=MTOKEN,
        recorded_at_us=now_us,
    )


async def settle_tokens(session: AsyncSession, now_us: int) -> None:
    """Batches that have ended used what they used of the tokens that were set aside for them; the rest goes back."""
    for each in await open_holds(session, unit=MTOKEN):
        batch = await session.get(Batch, each.batch or "")
        if batch is not None and batch.status in TERMINAL:
            await _settle(session, batch, now_us, now_us)


async def _settle(session: AsyncSession, batch: Batch, at_us: int, now_us: int) -> None:
    hold_id = f"tokens:{batch.id}"
    opened = await hold(session, hold_id)
    if opened is None or opened.resolved is not None:
        return
    used = _used(batch) * NANO_PER_TOKEN
    if opened.drawn_nano == 0 and used > 0:
        if used > opened.remaining_nano:
            # inputs are estimated before they are counted; what was used was used
            more = used - opened.remaining_nano
            await extend_hold(
                session,
                hold_id=hold_id,
                add_nano=more,
                sequence=1,
                occurred_at_us=at_us,
                actor=ACTOR,
                recorded_at_us=now_us,
            )
        await post_part(
            session, hold_id=hold_id, nano=used, sequence=1, occurred_at_us=at_us, actor=ACTOR, recorded_at_us=now_us
        )
    await void_hold(session, hold_id=hold_id, occurred_at_us=at_us, actor=ACTOR, recorded_at_us=now_us)
