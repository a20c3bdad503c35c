"""The budget loop: thresholds are told once, the breaker of each budget is moved, and what a breaker opened for is stopped.

A machine that is stopped drains: its worker commits what it has, so no answer that was paid for is lost. Each change of a
breaker is sealed in the stream `decisions`, with its numbers.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import msgspec
import structlog
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from broker.budget_tables import BudgetAlert, BudgetRow
from broker.budgets import projects_in, rentals_in, state_of, use_of
from broker.control.draining import drain_all
from broker.hold_expiry import expire_holds
from broker.mail import Letter, MailFailed, MailServerDown, send
from broker.services import Services
from broker.token_holds import Earlier, settle_tokens
from jobs import ids
from jobs.clock import db_now
from jobs.tables import OutboxEvent
from ledger import seal
from ledger.breaker import State, Use, due_thresholds, step
from ledger.money import in_units
from ledger.positions import RESOLUTIONS
from ledger.rules import period_of
from ledger.tables import Entry

log = structlog.get_logger()
ACTOR = "broker.budget"
MOST_LETTERS = 20  # of a round


@dataclass
class BudgetKeeper:
    services: Services
    earlier: Earlier = field(default_factory=Earlier)

    async def step(self) -> None:
        await self.earlier.step(self.services.database)
        await settle_tokens(self.services.database)
        await expire_holds(self.services.database, self.services.settings.control.hold_expiry_s)
        async with self.services.database.transaction() as session:
            budgets = list(await session.scalars(select(col(BudgetRow.id)).order_by(col(BudgetRow.id))))
        for budget in budgets:
            async with self.services.database.transaction() as session:
                await self._look(session, budget, await db_now(session))
        if budgets and self.services.settings.mail is not None:
            await self._mail()

    async def _look(self, session: AsyncSession, budget: str, now_us: int) -> None:
        row = await session.get_one(BudgetRow, budget, with_for_update=True)
        use = await use_of(session, row, now_us)
        await _tell_thresholds(session, row, use, now_us)
        before = state_of(row)
        is_relieved = (row.relieved_us or 0) > row.state_us or (
            row.window == "month" and period_of(row.state_us) != period_of(now_us)
        )
        after = step(before, use, is_relieved=is_relieved, went_well=await _went_well(session, row))
        if after == "open" and row.mode == "enforce":
            # before the change is sealed: rows of machines are locked before the heads of the books (broker/lock_order.py)
            reason = f"budget of {row.scope}: {in_units(use.committed_nano, row.unit)} of {in_units(use.limit_nano, row.unit)}"
            running = [each.id for each in await rentals_in(session, row) if each.state == "running"]
            await drain_all(session, dict.fromkeys(running, reason), now_us)
        if after != before:
            await _move(session, row, after, use, now_us)

    async def _mail(self) -> None:
        """Outside of any transaction, the oldest first; what was not taken is tried again, under the same Message-ID.

        A letter that is not taken keeps back no other one. A server that is down is not asked again in this round: each
        letter would wait for it as long as the first did, and the breakers with it.
        """
        settings = self.services.settings.mail
        assert settings is not None
        async with self.services.database.transaction() as session:
            query = select(BudgetAlert, BudgetRow).join(BudgetRow, col(BudgetRow.id) == col(BudgetAlert.budget))
            query = query.where(col(BudgetAlert.mailed_us).is_(None))
            query = query.order_by(col(BudgetAlert.at_us), col(BudgetAlert.budget), col(BudgetAlert.threshold))
            due = (await session.execute(query)).all()
        sent = 0
        for alert, row in due:
            if sent == MOST_LETTERS:
                return
            if row.emails:
                try:
                    await send(settings, letter_of(alert, row))
                except MailServerDown as failure:
                    log.warning("budget.mail_failed", budget=row.id, error=str(failure))
                    return
                except MailFailed as failure:
                    log.warning("budget.mail_failed", budget=row.id, error=str(failure))
                    continue
                sent += 1
            async with self.services.database.transaction() as session:
                found = await session.get(BudgetAlert, (alert.budget, alert.period, alert.threshold))
                if found is not None:
                    found.mailed_us = await db_now(session)


def letter_of(alert: BudgetAlert, row: BudgetRow) -> Letter:
    """What people are written about a threshold."""
    committed, limit = in_units(alert.committed_nano, row.unit), in_units(alert.limit_nano, row.unit)
    return Letter(
        to=tuple(row.emails),
        subject=f"[broker] budget of {row.scope}: {alert.threshold} % reached",
        text=f"{committed} of {limit} are spent or set aside ({row.window}: {alert.period}).\n"
        f"The budget is {row.state}; `broker budget limits` shows it, `broker budget set` proposes another.\n",
        message_id=f"{alert.budget}.{alert.period}.{alert.threshold}",
    )


async def _tell_thresholds(session: AsyncSession, row: BudgetRow, use: Use, now_us: int) -> None:
    period = "all" if row.window == "total" else period_of(now_us)
    query = select(col(BudgetAlert.threshold)).where(
        col(BudgetAlert.budget) == row.id, col(BudgetAlert.period) == period
    )
    for threshold in due_thresholds(use, frozenset(await session.scalars(query))):
        session.add(
            BudgetAlert(
                budget=row.id,
                period=period,
                threshold=threshold,
                committed_nano=use.committed_nano,
                limit_nano=use.limit_nano,
                at_us=now_us,
            )
        )
        log.warning("budget.threshold", budget=row.id, percent=threshold, committed_nano=use.committed_nano)
        await _tell(
            session, row, "budget.threshold", {"threshold": threshold, "period": period, **_numbers(row, use)}, now_us
        )


async def _move(session: AsyncSession, row: BudgetRow, after: State, use: Use, now_us: int) -> None:
    facts = {"from": row.state, "to": after, **_numbers(row, use)}
    sealed = {"kind": "budget.breaker", "budget": row.id, "at_us": now_us, **facts}
    await seal.append(session, "decisions", msgspec.json.encode(sealed, order="deterministic"))
    log.warning("budget.breaker", budget=row.id, before=row.state, after=after, percent=use.percent)
    row.state, row.state_us = after, now_us
    await _tell(session, row, "budget.breaker", facts, now_us)


def _numbers(row: BudgetRow, use: Use) -> dict[str, Any]:
    return {
        "unit": row.unit,
        "booked_nano": use.booked_nano,
        "held_nano": use.held_nano,
        "limit_nano": use.limit_nano,
        "percent": use.percent,
        "mode": row.mode,
    }


async def _tell(session: AsyncSession, row: BudgetRow, kind: str, facts: dict[str, Any], now_us: int) -> None:
    """Tell the webhooks of every project that the budget is about."""
    newest = select(func.coalesce(func.max(col(OutboxEvent.number)), 0)).where(col(OutboxEvent.batch_id) == row.id)
    number = int((await session.execute(newest)).scalar_one())
    for project in await projects_in(session, row):
        number += 1
        event = OutboxEvent(
            id=ids.event_id(),
            number=number,
            kind=kind,
            batch_id=row.id,
            project=project,
            payload=facts,
            created_us=now_us,
        )
        session.add(event)
    await session.flush()


async def _went_well(session: AsyncSession, row: BudgetRow) -> bool:
    """Whether a machine of the budget's projects ended since its breaker is where it is."""
    query = (
        select(col(Entry.id))
        .where(col(Entry.kind).in_(RESOLUTIONS), col(Entry.recorded_at_us) > row.state_us)
        .where(col(Entry.project).in_(await projects_in(session, row)))
        .limit(1)
    )
    return (await session.execute(query)).first() is not None
