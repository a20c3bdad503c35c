"""Tokens set aside for batches, where a budget in tokens is about them: the most that each can use, until it has ended."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import structlog
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from broker.budget_tables import BudgetRow
from broker.budgets import Placement, admit, budgets_of, nodes_above, projects_in
from broker.database import Database
from jobs import batches
from jobs.clock import db_now
from jobs.tables import Batch
from jobs.types import TERMINAL
from ledger.book import lock
from ledger.errors import HoldExceeded
from ledger.focus.table import period_bounds
from ledger.holds import extend_hold, hold, open_hold, open_holds, post_part, void_hold
from ledger.positions import holds
from ledger.standing import closed_periods
from ledger.tables import HoldState
from ledger.units import MTOKEN, NANO_PER_TOKEN

T = TypeVar("T")
log = structlog.get_logger()
ACTOR = "broker.budget"
ENDED_AT_ONCE = 200  # batches that ended before the limit was set, a round
BATCHES_AT_ONCE = 25  # in one transaction: it keeps the head of the books, where everybody queues


async def hold_tokens(session: AsyncSession, batch: Batch, tokens: int, *, now_us: int, actor: str) -> None:
    """Set the most tokens that a batch can use aside, where a budget in tokens is about it. Raises LimitExceeded."""
    if tokens <= 0 or not await budgets_of(session, batch.project, [batch.id], MTOKEN):
        return
    placement = Placement(batch.project, (batch.id,), tokens * NANO_PER_TOKEN, unit=MTOKEN)
    scopes = await admit(session, placement, now_us=now_us)
    await _open(session, batch, tokens, scopes, now_us, actor, now_us)


@dataclass(frozen=True, slots=True)
class Begun:
    """A batch whose tokens nobody has set aside yet: the most that it can use, from when on, and whether it is over."""

    batch: Batch
    tokens: int
    at_us: int
    is_over: bool


@dataclass
class Earlier:
    """Sets the tokens of batches aside that began before a limit was set. `after` is how far it came with those that have
    ended, by project: one that a grant refuses would otherwise keep all older ones from being counted, for ever.
    """

    after: dict[str, str] = field(default_factory=dict)

    async def step(self, database: Database) -> None:
        """A limit that is set while batches run is about them, too: their tokens are set aside from the first moment, what they
        have used already included. Those that ended before count in the month in which they ended, if it is open.

        It is a fact and asks nobody: a limit that is passed by it stops what runs. What it needs is read before the head of
        the books is locked, and no transaction keeps it for more than a few batches of one project.
        """
        async with database.transaction() as session:
            found = await self._projects(session)
        for project, with_ended, since_us in found:
            async with database.transaction() as session:
                now_us = await db_now(session)
                begun = await self._begun(session, project, with_ended, since_us, now_us)
            for some in batched(begun, BATCHES_AT_ONCE):
                async with database.transaction() as session:
                    await _set_aside(session, project, some, await db_now(session))

    async def _projects(self, session: AsyncSession) -> list[tuple[str, bool, int]]:
        """Each project that a budget in tokens is about, whether its ended batches count with a hold, and since when."""
        rows = list(await session.scalars(select(BudgetRow).where(col(BudgetRow.unit) == MTOKEN)))
        projects = sorted({project for row in rows for project in await projects_in(session, row)})
        closed = await closed_periods(session) if rows else set()
        since_us = max((period_bounds(each)[1] * 1_000_000 for each in closed), default=0)
        scopes = {row.scope for row in rows}
        # of budgets of batches and tags those that have ended are counted without a hold
        return [
            (project, bool(scopes.intersection({f"project:{project}", *await nodes_above(session, project)})), since_us)
            for project in projects
        ]

    async def _begun(
        self, session: AsyncSession, project: str, with_ended: bool, since_us: int, now_us: int
    ) -> list[Begun]:
        held = select(col(HoldState.batch)).where(col(HoldState.unit) == MTOKEN, col(HoldState.project) == project)
        mine = select(Batch).where(
            col(Batch.project) == project, col(Batch.id).not_in(held.where(col(HoldState.batch).is_not(None)))
        )
        going = mine.where(col(Batch.in_progress_us).is_not(None), col(Batch.status).not_in(TERMINAL))
        found = []
        for batch in (await session.scalars(going.order_by(col(Batch.id)))).all():
            left = await batches.remaining(session, batch.id)
            found.append(Begun(batch, _used(batch) + left.input_tokens + left.output_tokens, now_us, is_over=False))
        if with_ended:
            over = await self._ended(session, project, mine, since_us)
            found += [Begun(batch, _used(batch), _ended_us(batch), is_over=True) for batch in over]
        return [
            each for each in found if each.tokens > 0 and await budgets_of(session, project, [each.batch.id], MTOKEN)
        ]

    async def _ended(self, session: AsyncSession, project: str, mine: Any, since_us: int) -> Sequence[Batch]:
        """The newest that have not been looked at, so many a round; from the newest again after the last."""
        ended = func.coalesce(
            col(Batch.completed_us), col(Batch.failed_us), col(Batch.expired_us), col(Batch.cancelled_us), 0
        )
        over = mine.where(
            col(Batch.status).in_(TERMINAL),
            col(Batch.used_input_tokens) + col(Batch.used_output_tokens) > 0,
            ended >= since_us,
        )
        if (last := self.after.pop(project, None)) is not None:
            over = over.where(col(Batch.id) < last)
        rows: Sequence[Batch] = (await session.scalars(over.order_by(col(Batch.id).desc()).limit(ENDED_AT_ONCE))).all()
        if len(rows) == ENDED_AT_ONCE:
            self.after[project] = rows[-1].id
        return rows


def batched(whole: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """`itertools.batched` of a newer Python."""
    return (whole[at : at + size] for at in range(0, len(whole), size))


def _ended_us(batch: Batch) -> int:
    known = (batch.completed_us, batch.failed_us, batch.expired_us, batch.cancelled_us)
    return next((each for each in known if each is not None), batch.created_us)


def _used(batch: Batch) -> int:
    return batch.used_input_tokens + batch.used_output_tokens


async def _set_aside(session: AsyncSession, project: str, begun: Sequence[Begun], now_us: int) -> None:
    scopes = await nodes_above(session, project)
    await lock(session)
    known = {each.id for each in await holds(session, [_hold_of(each.batch) for each in begun])}
    for each in begun:
        if _hold_of(each.batch) in known:
            continue  # another broker was first, or the batch was admitted meanwhile
        try:
            await _open(session, each.batch, each.tokens, scopes, each.at_us, ACTOR, now_us)
        except HoldExceeded as refused:
            # a grant in tokens; what was used is used, and the grant stays visible as used up
            log.warning("budget.tokens_uncounted", batch=each.batch.id, tokens=each.tokens, error=str(refused))
            continue
        if each.is_over:
            await _settle(session, each.batch, each.at_us, now_us)


def _hold_of(batch: Batch) -> str:
    return f"tokens:{batch.id}"


async def _open(
    session: AsyncSession, batch: Batch, tokens: int, scopes: tuple[str, ...], at_us: int, actor: str, now_us: int
) -> None:
    await open_hold(
        session,
        hold_id=_hold_of(batch),
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


async def settle_tokens(database: Database) -> None:
    """Batches that have ended used what they used of the tokens that were set aside for them; the rest goes back."""
    async with database.transaction() as session:
        open_for = [each.batch for each in await open_holds(session, unit=MTOKEN) if each.batch]
        query = select(Batch).where(col(Batch.id).in_(open_for), col(Batch.status).in_(TERMINAL))
        ended = list(await session.scalars(query.order_by(col(Batch.id)))) if open_for else []
    for some in batched(ended, BATCHES_AT_ONCE):
        async with database.transaction() as session:
            now_us = await db_now(session)
            await lock(session)
            for batch in some:
                await _settle(session, batch, now_us, now_us)


async def _settle(session: AsyncSession, batch: Batch, at_us: int, now_us: int) -> None:
    hold_id = _hold_of(batch)
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
