"""The accrual loop: book what the market confirmed, keep each hold ahead of its spending, stop what may not go on.

The market's "running at seen_at" is what is booked up to, so the books never run ahead of the provider's own meter; the
hold covers what lies between.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import structlog
from sqlalchemy import delete, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from broker.budget_batches import Early, served_by
from broker.budgets import Placement, admit, early_for, nodes_above, why_refused, within_own_limits
from broker.control.besides import book_deposit, set_aside_nano, terms_of
from broker.control.ceiling import stop_at_ceiling
from broker.control.draining import drain
from broker.control.settle import ACTOR, meter_of
from broker.services import Services
from broker.tables import Assignment
from broker.token_buying import covered as covered_by
from broker.token_buying import is_bought
from broker.token_costs import accrue_used, most_left
from jobs.clock import db_now
from ledger.accrual import accrue
from ledger.commitments import Commitment, amortise, commitments
from ledger.errors import HoldExceeded, LedgerError
from ledger.holds import extend_hold, hold
from ledger.money import cost_of_seconds
from markets import rentals
from markets.errors import MarketsError
from markets.tables import RentalRow

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Refused:
    """What budgets refuse to pay on: the machine and why, and the batches of it, each with why. `covered`: where tokens are
    bought, the batches for which the hold was extended."""

    machine: str | None
    batches: Mapping[str, str]
    covered: tuple[str, ...] = ()


@dataclass
class Accruer:
    services: Services

    async def step(self) -> None:
        await self._amortise()
        await self._meter()

    async def _amortise(self) -> None:
        """What was bought ahead costs money by the hour, whether or not a machine uses it."""
        async with self.services.database.transaction() as session:
            known = await commitments(session)
        for bought in known:
            try:
                await self._amortise_one(bought)
            except LedgerError as failure:
                # one commitment that cannot be booked must not stop the others, nor the meters
                log.error("amortise.failed", commitment=bought.id, code=failure.code, error=str(failure))

    async def _amortise_one(self, bought: Commitment) -> None:
        async with self.services.database.transaction() as session:
            now_us = await db_now(session)
            query = select(col(RentalRow.started_us), col(RentalRow.ended_us)).where(
                col(RentalRow.market) == bought.market,
                col(RentalRow.pricing) == "reserved",
                col(RentalRow.started_us).is_not(None),
            )
            rows = (await session.execute(query)).all()
            spans = [(begun, ended or now_us) for begun, ended in rows if begun is not None]
            await amortise(session, bought, spans, now_us=now_us)

    async def _meter(self) -> None:
        async with self.services.database.transaction() as session:
            rows = [row for row in await rentals.open_rentals(session) if row.started_us and row.last_seen_us]
            if not rows:
                await stop_at_ceiling(session, self.services.settings, await db_now(session))
                return
        for row in rows:
            try:
                async with self.services.database.transaction() as session:
                    refused = await self._book(session, row)
                if refused is not None:
                    # in a transaction of its own: machines are locked before the books, never after (broker/lock_order.py)
                    async with self.services.database.transaction() as session:
                        await _act_on(session, row, refused, now_us := await db_now(session))
                    for batch, why in refused.batches.items():
                        # the next plan tries the next best instead of the same place again
                        self.services.refusals.note(batch, row.offer_key, why, now_us)
            except (LedgerError, MarketsError) as failure:
                # one meter that cannot be booked must not stop the others, nor the ceilings below
                log.error("accrue.failed", rental=row.id, code=failure.code, error=str(failure))
        async with self.services.database.transaction() as session:
            await stop_at_ceiling(session, self.services.settings, await db_now(session))

    async def _book(self, session: AsyncSession, row: RentalRow) -> Refused | None:
        now_us = await db_now(session)
        assert row.last_seen_us is not None
        meter = meter_of(row, await nodes_above(session, row.project))
        early = await self._early(session, row)
        if is_bought(row):
            at_us = row.last_seen_us
            await accrue_used(session, row, meter, until_us=at_us, final=False, actor=ACTOR, recorded_at_us=now_us)
        else:
            await accrue(session, meter, until_us=row.last_seen_us, final=False, actor=ACTOR, recorded_at_us=now_us)
        await book_deposit(session, row, meter, is_over=False, actor=ACTOR, now_us=now_us)
        return await self._keep_ahead(session, row, now_us, early)

    async def _most(self, session: AsyncSession, row: RentalRow, batches: Sequence[str]) -> int:
        return await most_left(session, row, batches, self.services.settings.control.hold_buffer)

    async def _short(self, session: AsyncSession, row: RentalRow, served: tuple[str, ...], left_nano: int) -> int:
        """What the hold is to be extended by; 0 while it is enough. Of tokens the worst case of all lines that are not answered
        is set aside."""
        if is_bought(row):
            return max(0, await self._most(session, row, served) - left_nano)
        margin = self._margin(row)
        return 0 if left_nano >= margin else 4 * margin

    def _margin(self, row: RentalRow) -> int:
        """What passes unseen. What the machine costs besides its time is set aside beside it, until its end."""
        return cost_of_seconds(row.price_nano_hour, self.services.settings.control.unseen_s + row.granularity_s)

    async def _early(self, session: AsyncSession, row: RentalRow) -> Early | None:
        """What the batches' budgets have booked, where the hold will soon be extended: accrual locks the head of the books, and
        behind it all that a tag's batches ever cost must not be added up."""
        opened = await hold(session, row.id)
        if opened is None or opened.resolved is not None:
            return None
        if not is_bought(row) and opened.remaining_nano >= 2 * self._margin(row) + set_aside_nano(terms_of(row)):
            return None
        return await early_for(session, [(row.project, (await served_by(session, [row]))[row.id])])

    async def _keep_ahead(
        self, session: AsyncSession, row: RentalRow, now_us: int, early: Early | None
    ) -> Refused | None:
        """Extend the hold while less than `margin` is left; when the budget refuses, the machine drains: spending stops.

        Batches whose own budget, or a tag's, does not cover it any more leave the machine to the others that it serves.
        """
        opened = await hold(session, row.id)
        if opened is None or opened.resolved is not None or row.state == "releasing":
            return None
        served = (await served_by(session, [row]))[row.id]
        left_nano = opened.remaining_nano - set_aside_nano(terms_of(row))
        newcomers = tuple(batch for batch in served if is_bought(row) and batch not in covered_by(row))
        served = tuple(batch for batch in served if batch not in newcomers)
        add_nano = await self._short(session, row, served, left_nano)
        if add_nano == 0:
            return await self._cover(session, row, served, newcomers, left_nano, now_us, early) if newcomers else None
        sequence = opened.nano  # grows with every extension, so a repeat after a crash is the same extension
        asked = Placement(row.project, served, add_nano, is_running=True)
        covered, refused = await within_own_limits(session, asked, now_us, early)
        why = {batch: over.why for batch, over in refused.items()}
        if served and not covered:
            return Refused(f"budget: {'; '.join(why.values())}", why)
        try:
            await admit(session, replace(asked, batches=covered), now_us=now_us, early=early)
            await extend_hold(
                session, hold_id=row.id, add_nano=add_nano, sequence=sequence, occurred_at_us=now_us, actor=ACTOR
            )
        except HoldExceeded as failure:
            log.warning("rental.over_budget", rental=row.id, error=str(failure))
            return Refused(f"budget: {failure}", why)
        return Refused(None, why) if why else None

    async def _cover(
        self,
        session: AsyncSession,
        row: RentalRow,
        served: tuple[str, ...],
        newcomers: tuple[str, ...],
        left_nano: int,
        now_us: int,
        early: Early | None,
    ) -> Refused:
        """Extend the hold of an executor for batches that the plan put there since; those that no budget covers leave it, and
        the ones it serves stay."""
        need_nano, add_nano = await self._most(session, row, served), 0
        found, why = list[str](), dict[str, str]()
        for batch in newcomers:
            most = await self._most(session, row, [batch])
            add = max(0, need_nano + most - left_nano)
            asked = Placement(row.project, (*served, *found, batch), max(1, add), is_running=True)
            if over := await why_refused(session, asked, now_us=now_us, early=early):
                why[batch] = over.why
                continue
            found.append(batch)
            need_nano, add_nano = need_nano + most, add
        if add_nano:
            opened = await hold(session, row.id)
            assert opened is not None
            await extend_hold(
                session, hold_id=row.id, add_nano=add_nano, sequence=opened.nano, occurred_at_us=now_us, actor=ACTOR
            )
        return Refused(None, why, tuple(found))


async def _act_on(session: AsyncSession, row: RentalRow, refused: Refused, now_us: int) -> None:
    """Drain the machine, or take the batches off it that may not spend on it any more; the planner says what becomes of them."""
    for batch, reason in sorted(refused.batches.items()):
        log.warning("rental.batch_over_budget", rental=row.id, batch=batch, error=reason)
        await session.execute(
            delete(Assignment).where(col(Assignment.batch) == batch, col(Assignment.offer_key) == row.offer_key)
        )
    if refused.covered:
        mine = await rentals.locked(session, row.id)
        mine.purpose = {**mine.purpose, "covered": [*mine.purpose.get("covered", ()), *refused.covered]}
    if refused.machine is not None:
        await drain(session, row, refused.machine, now_us)
