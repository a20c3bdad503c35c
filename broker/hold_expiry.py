"""Holds that nothing is behind any more: they expire, so that money which nobody will spend is not kept from those who would.

A machine's hold is voided in the transaction that books its end, a batch's tokens are settled when it has ended. What is left
open was opened by something that is no longer known (a batch that was erased, rows that a restored database has not, a defect).
As long as a rental is not settled its hold stays, however old it is: a machine that runs is never without one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import structlog
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from broker.database import Database
from jobs.clock import db_now
from jobs.tables import Batch
from ledger.book import lock
from ledger.holds import Hold, expire_hold, hold, open_holds
from ledger.units import MTOKEN
from markets.tables import RentalRow

log = structlog.get_logger()
ACTOR = "broker.budget"


@dataclass(frozen=True, slots=True)
class Behind:
    """What a hold is there for. `state` is the rental's or the batch's; `over_us` when it was settled, None while it is not."""

    state: str
    over_us: int | None


def expires_us(of: Hold, behind: Behind | None, after_us: int) -> int | None:
    """When a hold expires: so long after what it was for was over, or after it was opened where nothing is known of that.
    None: never, what it is for is not over. Pure.

    >>> opened = Hold("h", "p", None, "h", None, 5, 0, 5, 1, 1_000, None)
    >>> [expires_us(opened, each, 60) for each in (None, Behind("running", None), Behind("ended", 2_000))]
    [1060, None, 2060]
    """
    if behind is None:
        return of.opened_at_us + after_us
    return None if behind.over_us is None else behind.over_us + after_us


def expired(holds: Sequence[Hold], behind: Mapping[str, Behind], after_us: int, now_us: int) -> list[Hold]:
    """Those of the open holds that expire by now. Pure."""
    told = [(each, expires_us(each, behind.get(each.id), after_us)) for each in holds]
    return [each for each, at_us in told if at_us is not None and at_us <= now_us]


async def behind_of(session: AsyncSession, holds: Sequence[Hold]) -> dict[str, Behind]:
    """What each hold is for, where it is known. A batch settles its tokens itself, so it is never over here."""
    found: dict[str, Behind] = {}
    rentals = {each.rental: each.id for each in holds if each.rental}
    batches = {each.batch: each.id for each in holds if each.rental is None and each.batch}
    of_rentals = select(RentalRow).where(col(RentalRow.id).in_(rentals))
    for row in await session.scalars(of_rentals):
        over_us = (row.ended_us or row.release_us or row.created_us) if row.settled else None
        found[rentals[row.id]] = Behind(row.state, over_us)
    of_batches = select(col(Batch.id), col(Batch.status)).where(col(Batch.id).in_(batches))
    for batch, status in (await session.execute(of_batches)).all():
        found[batches[batch]] = Behind(status, None)
    return found


async def expire_holds(database: Database, after_s: float) -> None:
    """Let all holds expire whose time has come; each in a transaction of its own, in which it is looked at again."""
    after_us = round(after_s * 1_000_000)
    async with database.transaction() as session:
        now_us = await db_now(session)
        opened = [*await open_holds(session), *await open_holds(session, unit=MTOKEN)]
        old = [each for each in opened if each.opened_at_us + after_us <= now_us]
        due = expired(old, await behind_of(session, old), after_us, now_us)
    for each in due:
        async with database.transaction() as session:
            await _expire(session, each.id, after_us)


async def _expire(session: AsyncSession, hold_id: str, after_us: int) -> None:
    await lock(session)
    opened = await hold(session, hold_id)
    now_us = await db_now(session)
    if opened is None or opened.resolved is not None:
        return  # it was voided meanwhile
    if not expired([opened], await behind_of(session, [opened]), after_us, now_us):
        return
    await expire_hold(session, hold_id=hold_id, occurred_at_us=now_us, actor=ACTOR)
    log.warning(
        "hold.expired", hold=hold_id, project=opened.project, nano=opened.remaining_nano, unit=opened.unit,
        opened_us=opened.opened_at_us,
    )  # fmt: skip
