"""What the postings say now: a project's budget, its holds. Read-only; sums in the database, integers out."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import ColumnElement, func, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import aliased
from sqlmodel import col

from ledger import accounts
from ledger.event import UNIT_USD
from ledger.tables import Entry, Posting

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


async def remaining(session: AsyncSession, project: str) -> int | None:
    """Nano-USD that the project may still commit: granted − accrued − what open holds still set aside.

    None: the project never got a budget, so there is no limit. A grant counts over the whole life of the project, and
    so does what was accrued before it. Negative only when accruals went beyond their holds.
    """
    granted = select(col(Entry.id)).where(col(Entry.kind) == "budget.grant", col(Entry.project) == project).limit(1)
    if (await session.execute(granted)).first() is None:
        return None
    total = select(func.coalesce(func.sum(col(Posting.nano)), 0)).where(
        col(Posting.account) == accounts.budget(project), col(Posting.unit) == UNIT_USD
    )
    return int((await session.execute(total)).scalar_one())


async def hold(session: AsyncSession, hold_id: str) -> Hold | None:
    """The hold, open or resolved; None when there never was one with this id."""
    found = await _holds(session, col(Entry.hold) == hold_id)
    return found[0] if found else None


async def open_holds(session: AsyncSession, *, project: str | None = None, rental: str | None = None) -> list[Hold]:
    """The holds that are not resolved, oldest first."""
    resolution = aliased(Entry)
    conditions: list[ColumnElement[bool]] = [
        ~select(col(resolution.id))
        .where(col(resolution.hold) == col(Entry.hold), col(resolution.kind).in_(RESOLUTIONS))
        .exists()
    ]
    if project is not None:
        conditions.append(col(Entry.project) == project)
    if rental is not None:
        conditions.append(col(Entry.rental) == rental)
    return await _holds(session, *conditions)


async def _holds(session: AsyncSession, *conditions: ColumnElement[bool]) -> list[Hold]:
    opening = select(Entry).where(col(Entry.kind) == "hold.open", *conditions).order_by(col(Entry.seq))
    opened = (await session.execute(opening)).scalars().all()
    ids = select(col(Entry.hold)).where(col(Entry.kind) == "hold.open", *conditions)
    sums = (
        select(col(Entry.hold), col(Entry.kind), col(Posting.account), func.sum(col(Posting.nano)))
        .join(Posting, col(Posting.entry_id) == col(Entry.id))
        .where(col(Entry.hold).in_(ids))
        .group_by(col(Entry.hold), col(Entry.kind), col(Posting.account))
    )
    moved: dict[str, dict[tuple[str, str], int]] = {}
    for hold_id, kind, account, nano in (await session.execute(sums)).all():
        moved.setdefault(hold_id or "", {})[kind, account] = int(nano)
    return [_hold(entry, moved[entry.hold or ""]) for entry in opened]


def _hold(opened: Entry, moved: dict[tuple[str, str], int]) -> Hold:
    project = opened.project or ""
    held, drawn = accounts.held(project), accounts.drawn(project)
    kinds = {kind for kind, _ in moved}
    return Hold(
        id=opened.hold or "",
        project=project,
        batch=opened.batch,
        rental=opened.rental,
        offer_key=opened.offer_key,
        nano=sum(
            nano for (kind, account), nano in moved.items() if account == held and kind in ("hold.open", "hold.extend")
        ),
        drawn_nano=sum(nano for (kind, account), nano in moved.items() if account == drawn and kind not in RESOLUTIONS),
        remaining_nano=sum(nano for (_, account), nano in moved.items() if account == held),
        opened_seq=opened.seq,
        opened_at_us=opened.occurred_at_us,
        resolved=next((kind.removeprefix("hold.") for kind in RESOLUTIONS if kind in kinds), None),
    )
