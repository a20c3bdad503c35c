"""Setting budgets: what narrows holds at once, what widens waits for a second person (contract C14)."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

import structlog
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col
from ulid import ULID

from broker.approvals import Outcome
from broker.budget_tables import BudgetChange, BudgetRow
from broker.budgets import account_name
from broker.tables import Approval
from ledger.limits import set_limit
from ledger.money import in_units

log = structlog.get_logger()
KIND = "budget"


class ChangeStale(Exception):
    """The budget is not what it was when the change was proposed."""

    code = "change_stale"


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a budget shall be. `per_hour_nano` None: no limit an hour."""

    limit_nano: int
    per_hour_nano: int | None
    mode: str
    window: str
    emails: tuple[str, ...]


def widens(before: Wanted, after: Wanted) -> str | None:
    """Why the change lets more be spent, in words, or None. Whom to mail is no such thing.

    >>> widens(Wanted(5, None, "enforce", "month", ()), Wanted(4, 1, "enforce", "total", ("a@b",)))
    """
    if after.limit_nano > before.limit_nano:
        return "the limit is raised"
    if before.per_hour_nano is not None and (after.per_hour_nano is None or after.per_hour_nano > before.per_hour_nano):
        return "the limit of an hour is raised"
    if (before.mode, after.mode) == ("enforce", "alert_only"):
        return "it would only alert"
    return "it would begin anew each month" if (before.window, after.window) == ("total", "month") else None


def differences(before: Wanted, after: Wanted, unit: str) -> tuple[str, ...]:
    """Everything that the change changes, in words: who approves it approves all of it.

    >>> differences(Wanted(5, None, "enforce", "total", ()), Wanted(6, 7, "alert_only", "total", ()), "USD")
    ('limit $0.000000005 → $0.000000006', 'an hour unlimited → $0.000000007', 'mode enforce → alert_only')
    """

    def an_hour(nano: int | None) -> str:
        return "unlimited" if nano is None else in_units(nano, unit)

    parts = (
        ("limit", in_units(before.limit_nano, unit), in_units(after.limit_nano, unit)),
        ("an hour", an_hour(before.per_hour_nano), an_hour(after.per_hour_nano)),
        ("mode", before.mode, after.mode),
        ("window", before.window, after.window),
        ("letters to", ", ".join(before.emails) or "nobody", ", ".join(after.emails) or "nobody"),
    )
    return tuple(f"{name} {old} → {new}" for name, old, new in parts if old != new)


def wanted_of(row: BudgetRow) -> Wanted:
    """What a budget is now."""
    return Wanted(row.limit_nano, row.per_hour_nano, row.mode, row.window, tuple(row.emails))


async def find(session: AsyncSession, scope: str, unit: str) -> BudgetRow | None:
    """The budget of a node, locked."""
    query = select(BudgetRow).where(col(BudgetRow.scope) == scope, col(BudgetRow.unit) == unit).with_for_update()
    row: BudgetRow | None = await session.scalar(query)
    return row


async def put(
    session: AsyncSession, *, scope: str, unit: str, project: str | None, wanted: Wanted, by: str, now_us: int
) -> tuple[BudgetRow, Approval | None]:
    """Make the budget, or change it; a change that widens it is proposed only, and the approval is what it waits for."""
    row = await find(session, scope, unit)
    if row is None:
        row = BudgetRow(
            id=f"budget_{ULID()}",
            scope=scope,
            unit=unit,
            project=project,
            limit_nano=0,
            state_us=now_us,
            window=wanted.window,
            emails=[],
            created_us=now_us,
            updated_us=now_us,
        )
        session.add(row)
        await apply(session, row, wanted, by=by, approval=None, now_us=now_us)
        return row, None
    why = widens(wanted_of(row), wanted)
    if why is None:
        await apply(session, row, wanted, by=by, approval=None, now_us=now_us)
        return row, None
    return row, await _propose(session, row, wanted, why, by=by, now_us=now_us)


async def apply(
    session: AsyncSession, row: BudgetRow, wanted: Wanted, *, by: str, approval: str | None, now_us: int
) -> None:
    """Write the change, and its limit into the books. A raise relieves the breaker."""
    if wanted.limit_nano > row.limit_nano:
        row.relieved_us = now_us
    row.limit_nano, row.per_hour_nano, row.mode = wanted.limit_nano, wanted.per_hour_nano, wanted.mode
    row.window, row.emails, row.updated_us = wanted.window, list(wanted.emails), now_us
    session.add(row)
    await session.flush()
    await set_limit(
        session,
        account_of=account_name(row.scope),
        unit=row.unit,
        nano=wanted.limit_nano,
        occurred_at_us=now_us,
        actor=by,
        approval=approval,
        project=row.project,
    )
    log.info("budget.set", budget=row.id, limit_nano=row.limit_nano, mode=row.mode, by=by, approval=approval)


async def _propose(
    session: AsyncSession, row: BudgetRow, wanted: Wanted, why: str, *, by: str, now_us: int
) -> Approval:
    approval = Approval(
        id=f"approval_{ULID()}",
        kind=KIND,
        subject=row.id,
        project=row.project or "",
        reason=f"{why}: {'; '.join(differences(wanted_of(row), wanted, row.unit))}",
        proposer=by,
        created_us=now_us,
    )
    session.add(approval)
    change = {**_stored(wanted), "before": _stored(wanted_of(row))}
    session.add(BudgetChange(approval=approval.id, budget=row.id, wanted=change))
    await session.flush()
    log.info("approval.proposed", approval=approval.id, budget=row.id, proposer=by)
    return approval


async def decide(
    session: AsyncSession, approval: Approval, change: BudgetChange, outcome: Outcome, *, by: str, now_us: int
) -> BudgetRow:
    """Carry out or drop what was proposed. The caller has asked for `approvals.objection`, and that nobody decided before.

    Raises ChangeStale when the budget is not what it was when the change was proposed: nobody approved *that* change.
    """
    row = await session.get_one(BudgetRow, change.budget, with_for_update=True, populate_existing=True)
    if outcome == "approved" and change.wanted.get("before") != _stored(wanted_of(row)):
        raise ChangeStale(
            f"the budget of {row.scope} was changed after {approval.id} was proposed ({approval.reason}); reject it and "
            "propose anew what it shall be"
        )
    approval.outcome, approval.decided_by, approval.decided_us = outcome, by, now_us
    session.add(approval)
    if outcome == "approved":
        await apply(session, row, _read(change.wanted), by=by, approval=approval.id, now_us=now_us)
    log.info(f"approval.{outcome}", approval=approval.id, budget=row.id, by=by, proposer=approval.proposer)
    return row


def _stored(wanted: Wanted) -> dict[str, Any]:
    return {**asdict(wanted), "emails": list(wanted.emails)}


def _read(stored: dict[str, Any]) -> Wanted:
    return Wanted(**{each.name: stored[each.name] for each in fields(Wanted)} | {"emails": tuple(stored["emails"])})


async def pending(session: AsyncSession) -> list[tuple[Approval, BudgetChange]]:
    """What waits for a second person, oldest first."""
    query = (
        select(Approval, BudgetChange)
        .join(BudgetChange, col(BudgetChange.approval) == col(Approval.id))
        .where(col(Approval.outcome).is_(None), col(Approval.kind) == KIND)
        .order_by(col(Approval.id))
    )
    return [(row[0], row[1]) for row in (await session.execute(query)).all()]
