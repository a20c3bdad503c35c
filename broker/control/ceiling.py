"""`max_usd` is a ceiling: a batch is stopped while stopping is still paid for, and it stays stopped, visibly.

What a machine costs between two looks, until it is told to stop, and until its market confirms the end, must fit under
the limit. The planner keeps the same reserve free (`Snapshot.stop_margin_s`): otherwise it would rent what is stopped at
once, again and again, until the money is gone without one answer.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import structlog
from sqlalchemy import delete, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from broker.control.draining import drain_all
from broker.control.snapshot import max_nano, stopped
from broker.costs import batch_costs
from broker.settings import Settings
from broker.tables import STOPPED, Assignment, Waiting
from broker.token_buying import is_bought, spends_at_most
from broker.token_costs import most_left
from broker.worker_pool import pool
from jobs.tables import Batch
from jobs.types import TERMINAL
from ledger.money import cost_of_seconds, in_usd
from markets import rentals
from markets.tables import RentalRow

log = structlog.get_logger()


@dataclass
class _Limited:
    """A batch with a limit, the running rentals that cost it, and those of them that nobody else needs."""

    batch: Batch
    limit: int
    rows: list[RentalRow] = field(default_factory=list)
    idle: list[RentalRow] = field(default_factory=list)

    @property
    def has_ended(self) -> bool:
        return _over(self.batch)


async def stop_at_ceiling(session: AsyncSession, settings: Settings, now_us: int) -> None:
    """Stop each batch whose cost could pass its `max_usd` before a later look: no more leases, its machines drain; those
    that do not end in time are released. After its end a batch pays for idle machines too: these are let go."""
    running = [row for row in await rentals.open_rentals(session) if row.state == "running"]
    limited = await _limited(session, running)
    costs = await batch_costs(session, [each.batch.id for each in limited])
    drains, releases, control = dict[str, str](), dict[str, str](), settings.control
    for each in limited:
        spent = costs[each.batch.id].nano
        ahead = await _ahead(session, each, settings, control.drain_margin_s)
        if spent + ahead <= each.limit:
            continue
        reason = (
            f"max_usd: {in_usd(spent)} of {in_usd(each.limit)} spent, up to {in_usd(ahead)} more before its machines "
            "could be gone"
        )
        if not each.has_ended:
            await stop(session, each.batch.id, reason, now_us)
        mine = {row.id: reason for row in (each.idle if each.has_ended else each.rows)}
        drains = mine | drains  # the first reason stays
        if spent + await _ahead(session, each, settings, control.unseen_s) > each.limit:
            releases = mine | releases
    # rentals are locked after what is the batches', and all of them before any worker (broker/lock_order.py)
    for rental in sorted(drains):
        await rentals.locked(session, rental)
    for rental, reason in sorted(releases.items()):
        await rentals.request_release(session, rental, reason=reason, now_us=now_us)
    await drain_all(session, drains, now_us)


async def going_on(session: AsyncSession, batch_ids: Collection[str]) -> frozenset[str]:
    """Those of the batches that still take work: neither closed nor paused nor stopped at their ceiling."""
    open_ = select(col(Batch.id)).where(
        col(Batch.id).in_(batch_ids),
        col(Batch.status) == "in_progress",
        col(Batch.ending).is_(None),
        col(Batch.paused_us).is_(None),
    )
    return frozenset(await session.scalars(open_)) - await stopped(session)


async def _limited(session: AsyncSession, running: Sequence[RentalRow]) -> list[_Limited]:
    """Every batch with a limit that a running rental serves or was rented for, its own or another batch's machine alike."""
    found: dict[str, _Limited] = {}
    for row in running:
        batches = await pool(session, row)
        is_needed = any(not _over(batch) for batch in batches)
        for batch in batches:
            limit = max_nano((batch.wishes or {}).get("max_usd"))
            if limit is not None:
                each = found.setdefault(batch.id, _Limited(batch, limit))
                each.rows.append(row)
                each.idle.extend([] if is_needed else [row])
    return [found[batch_id] for batch_id in sorted(found)]


def _over(batch: Batch) -> bool:
    return batch.status in TERMINAL or batch.ending is not None


async def _ahead(session: AsyncSession, limited: _Limited, settings: Settings, seconds: int) -> int:
    """What its rentals cost in so many seconds; where tokens are bought, all of them of the dearest class and no more than its
    lines can take."""
    total = 0
    for row in limited.rows:
        if not is_bought(row):
            total += cost_of_seconds(row.price_nano_hour, seconds + row.granularity_s)
            continue
        most = await most_left(session, row, [limited.batch.id], settings.control.hold_buffer)
        hour = spends_at_most(settings, row)
        total += most if hour is None else min(most, cost_of_seconds(hour, seconds + row.granularity_s))
    return total


async def stop(session: AsyncSession, batch_id: str, reason: str, now_us: int) -> None:
    """Once; the first reason stays. Without assignments no worker gets a lease of it."""
    before = await session.get(Waiting, batch_id)
    if before is not None and before.plan == STOPPED:
        return
    await session.execute(delete(Assignment).where(col(Assignment.batch) == batch_id))
    await session.merge(
        Waiting(
            batch=batch_id, plan=STOPPED, waiting_on="price_ceiling", reasons=[reason], relaxations=[], since_us=now_us
        )
    )
    log.warning("batch.stopped", batch=batch_id, reason=reason)
