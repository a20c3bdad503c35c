"""What the postings say now: a project's budget, its holds. Read-only; sums in the database, integers out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

from sqlalchemy import ColumnElement, func, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from ledger import accounts
from ledger.event import UNIT_USD, Event
from ledger.tables import Entry, HoldState, Posting

RESOLUTIONS = ("hold.void", "hold.expire")


@dataclass(frozen=True, slots=True)
class Hold:
    """Money set aside. `nano` is what was opened and extended, `drawn_nano` what was accrued under it (this may exceed
    `nano`: an accrual is a fact and never refused), `remaining_nano` what is set aside still (0 once resolved).

    `resolved` is None while the hold is open, then "void" or "expire".
    """

    id: str
    project: str
    batch: str | None
    rental: str | None
    offer_key: str | None
    nano: int
    drawn_nano: int
    remaining_nano: int
    opened_seq: int
    opened_at_us: int
    resolved: str | None
    unit: str = UNIT_USD
    scopes: str = ""


async def remaining(session: AsyncSession, project: str, *, unit: str = UNIT_USD) -> int | None:
    """Nano-USD (or another `unit`, MTOKEN) that the project may still commit: granted − accrued − what open holds set aside.

    None: the project never got a budget, so there is no limit. A grant counts over the whole life of the project, and
    so does what was accrued before it. Negative only when accruals went beyond their holds.
    """
    account = accounts.budget(project)
    granted = (
        select(col(Entry.id))
        .join(Posting, col(Posting.entry_id) == col(Entry.id))
        .where(col(Entry.kind) == "budget.grant", col(Entry.project) == project)
        .where(col(Posting.account) == account, col(Posting.unit) == unit)
        .limit(1)
    )
    if (await session.execute(granted)).first() is None:
        return None
    total = select(func.coalesce(func.sum(col(Posting.nano)), 0)).where(
        col(Posting.account) == account, col(Posting.unit) == unit
    )
    return int((await session.execute(total)).scalar_one())


async def hold(session: AsyncSession, hold_id: str) -> Hold | None:
    """The hold, open or resolved; None when there never was one with this id."""
    found = await _holds(session, col(HoldState.id) == hold_id)
    return found[0] if found else None


async def holds(session: AsyncSession, hold_ids: Sequence[str]) -> list[Hold]:
    """Those of the holds that there are, open or resolved, oldest first."""
    return await _holds(session, col(HoldState.id).in_(hold_ids))


async def open_holds(session: AsyncSession, *, project: str | None = None, unit: str = UNIT_USD) -> list[Hold]:
    """The holds of a unit that are not resolved, oldest first."""
    conditions: list[ColumnElement[bool]] = [col(HoldState.resolved).is_(None), col(HoldState.unit) == unit]
    if project is not None:
        conditions.append(col(HoldState.project) == project)
    return await _holds(session, *conditions)


async def holds_of_rental(session: AsyncSession, rental: str) -> list[Hold]:
    """The rental's holds, open and resolved, oldest first."""
    return await _holds(session, col(HoldState.rental) == rental)


async def all_holds(session: AsyncSession) -> list[Hold]:
    """Every hold there ever was, oldest first."""
    return await _holds(session)


async def expired_nano(session: AsyncSession, project: str, period: str) -> int:
    """Nano-USD that came back to the project's budget in the month (`YYYY-MM`) because holds expired."""
    total = (
        select(func.coalesce(func.sum(col(Posting.nano)), 0))
        .join(Entry, col(Entry.id) == col(Posting.entry_id))
        .where(col(Entry.kind) == "hold.expire", col(Entry.project) == project, col(Entry.period) == period)
        .where(col(Posting.account) == accounts.held(project), col(Posting.unit) == UNIT_USD)
    )
    return -int((await session.execute(total)).scalar_one())


async def _holds(session: AsyncSession, *conditions: ColumnElement[bool]) -> list[Hold]:
    # Columns, not rows: a row of the session's identity map would be as old as its first read.
    names = [field.name for field in fields(Hold)]
    chosen = (
        select(*(col(getattr(HoldState, name)) for name in names))
        .where(*conditions)
        .order_by(col(HoldState.opened_seq))
    )
    return [Hold(**dict(zip(names, row, strict=True))) for row in (await session.execute(chosen)).all()]


def opened(event: Event, seq: int) -> Hold:
    """The state of a hold after its opening event."""
    if event.hold is None or event.dims.project is None:
        raise ValueError(f"event {event.key!r} opens no hold of a project")
    empty = Hold(
        id=event.hold,
        project=event.dims.project,
        batch=event.dims.batch,
        rental=event.dims.rental,
        offer_key=event.dims.offer_key,
        nano=0,
        drawn_nano=0,
        remaining_nano=0,
        opened_seq=seq,
        opened_at_us=event.occurred_at_us,
        resolved=None,
        unit=event.lines[0].unit,
        scopes=scopes_text(event),
    )
    return moved(empty, event)


def scopes_text(event: Event) -> str:
    """The scopes of an event as a hold keeps them."""
    return " ".join(event.scopes) if isinstance(event.scopes, tuple) else ""


def moved(before: Hold, event: Event) -> Hold:
    """The state of a hold after another event that names it."""
    held = sum(line.nano for line in event.lines if line.account == accounts.held(before.project))
    drawn = sum(line.nano for line in event.lines if line.account == accounts.drawn(before.project))
    resolves = event.kind in RESOLUTIONS
    return replace(
        before,
        nano=before.nano + (held if event.kind in ("hold.open", "hold.extend") else 0),
        drawn_nano=before.drawn_nano + (0 if resolves else drawn),
        remaining_nano=before.remaining_nano + held,
        resolved=event.kind.removeprefix("hold.") if resolves else before.resolved,
    )
