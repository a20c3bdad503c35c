"""Holds: money is set aside before it is spent, in the transaction that decides to spend it.

A hold is opened with the upper bound of what a rental can cost, extended when the rental shall run longer, drawn on by
accruals while it is open (ledger/accrual.py), and resolved once, when the market has confirmed the end: the remainder
goes back to the budget, what was drawn is spent for good. Nobody asks "is there money?" and spends later: opening the
hold *is* the question (LiteLLM #34732 and delm #65 overshot by checking first).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from msgspec import UNSET, UnsetType
from sqlalchemy.ext.asyncio import AsyncSession

from ledger import accounts
from ledger.book import find, lock, post
from ledger.errors import HoldResolved, HoldUnknown, MalformedEvent
from ledger.event import UNIT_USD, Dims, Event, Exists, Line, Posted
from ledger.positions import Hold, hold, open_holds

__all__ = ["Hold", "expire_hold", "extend_hold", "hold", "open_hold", "open_holds", "post_part", "void_hold"]


async def open_hold(
    session: AsyncSession,
    *,
    hold_id: str,
    nano: int,
    project: str,
    batch: str | None,
    rental: str | None,
    offer_key: str | None,
    occurred_at_us: int,
    actor: str,
    recorded_at_us: int | None = None,
    scopes: Sequence[str] = (),
    unit: str = UNIT_USD,
) -> Posted | Exists:
    """Set `nano` nano-USD (or another unit) of the project's budget aside; it counts against `scopes`, too.

    Raises HoldExceeded when the project has a budget and less than `nano` is left of it; KeyReused when the id was used
    with other content; MalformedEvent when `nano` is not positive.
    """
    if nano <= 0:
        raise MalformedEvent(f"hold {hold_id}: {nano} nano-USD; a hold is positive")
    event = Event(
        key=f"hold.open:{hold_id}",
        kind="hold.open",
        occurred_at_us=occurred_at_us,
        actor=actor,
        dims=Dims(project=project, batch=batch, rental=rental, offer_key=offer_key),
        lines=_set_aside(project, nano, unit),
        hold=hold_id,
        scopes=tuple(scopes) or UNSET,
    )
    return await post(session, event, recorded_at_us=occurred_at_us if recorded_at_us is None else recorded_at_us)


async def extend_hold(
    session: AsyncSession,
    *,
    hold_id: str,
    add_nano: int,
    sequence: int,
    occurred_at_us: int,
    actor: str,
    recorded_at_us: int | None = None,
) -> Posted | Exists:
    """Set another `add_nano` aside under the same hold. `sequence` numbers the extensions: the same number posts once.

    Raises HoldUnknown, HoldResolved, HoldExceeded, KeyReused; MalformedEvent when `add_nano` is not positive.
    """
    if add_nano <= 0:
        raise MalformedEvent(f"hold {hold_id}: extension of {add_nano} nano-USD; an extension is positive")
    await lock(session)
    opened = await _opened(session, hold_id)
    event = Event(
        key=f"hold.extend:{hold_id}:{sequence}",
        kind="hold.extend",
        occurred_at_us=occurred_at_us,
        actor=actor,
        dims=_dims(opened),
        lines=_set_aside(opened.project, add_nano, opened.unit),
        hold=hold_id,
        scopes=scopes_of(opened),
    )
    return await post(session, event, recorded_at_us=occurred_at_us if recorded_at_us is None else recorded_at_us)


async def post_part(
    session: AsyncSession,
    *,
    hold_id: str,
    nano: int,
    sequence: int,
    occurred_at_us: int,
    actor: str,
    recorded_at_us: int | None = None,
) -> Posted | Exists:
    """Use `nano` of what is set aside, where nothing is accrued for it (tokens). `sequence` numbers the parts.

    Raises HoldUnknown, HoldResolved, KeyReused; MalformedEvent when `nano` is not positive, or more than is left.
    """
    if nano <= 0:
        raise MalformedEvent(f"hold {hold_id}: a part of {nano} nano; a part is positive")
    await lock(session)
    opened = await _opened(session, hold_id)
    lines = (
        Line(account=accounts.drawn(opened.project), nano=nano, unit=opened.unit),
        Line(account=accounts.held(opened.project), nano=-nano, unit=opened.unit),
    )
    event = Event(
        key=f"hold.post:{hold_id}:{sequence}",
        kind="hold.post",
        occurred_at_us=occurred_at_us,
        actor=actor,
        dims=_dims(opened),
        lines=lines,
        hold=hold_id,
        scopes=scopes_of(opened),
    )
    return await post(session, event, recorded_at_us=occurred_at_us if recorded_at_us is None else recorded_at_us)


async def void_hold(
    session: AsyncSession, *, hold_id: str, occurred_at_us: int, actor: str, recorded_at_us: int | None = None
) -> Posted | Exists:
    """Resolve the hold: the whole remainder goes back to the budget, what was drawn on it is spent.

    The same void again (same time and actor) answers Exists. Raises HoldUnknown; HoldResolved when the hold was
    resolved otherwise.
    """
    await lock(session)
    opened = await _opened(session, hold_id)
    key = f"hold.void:{hold_id}"
    if opened.resolved is not None:
        before = await find(session, key)
        if before is None or (before.event.occurred_at_us, before.event.actor) != (occurred_at_us, actor):
            raise HoldResolved(
                f"hold {hold_id} was resolved before ({opened.resolved}); a hold is resolved exactly once"
            )
        return Exists(entry_id=before.entry_id, seq=before.seq)
    event = _resolved(opened, "hold.void", occurred_at_us, actor)
    return await post(session, event, recorded_at_us=occurred_at_us if recorded_at_us is None else recorded_at_us)


async def expire_hold(session: AsyncSession, *, hold_id: str, occurred_at_us: int, actor: str) -> Posted:
    """Resolve a hold that nothing is behind any more; what becomes of its money is as with a void.

    Raises HoldUnknown, HoldResolved.
    """
    await lock(session)
    opened = await _opened(session, hold_id)
    if opened.resolved is not None:
        raise HoldResolved(f"hold {hold_id} was resolved before ({opened.resolved}); a hold is resolved exactly once")
    event = _resolved(opened, "hold.expire", occurred_at_us, actor)
    posted = await post(session, event, recorded_at_us=occurred_at_us)
    assert isinstance(posted, Posted), "behind the lock of the books it was open"
    return posted


def _resolved(opened: Hold, how: Literal["hold.void", "hold.expire"], occurred_at_us: int, actor: str) -> Event:
    """The end of a hold by `void` or `expire`: its remainder goes back, what was drawn on it is spent."""
    return Event(
        key=f"{how}:{opened.id}",
        kind=how,
        occurred_at_us=occurred_at_us,
        actor=actor,
        dims=_dims(opened),
        lines=_resolution(opened),
        hold=opened.id,
        scopes=scopes_of(opened),
    )


@dataclass(frozen=True, slots=True)
class Draw:
    """How an accrual is charged: under which hold (None: straight to the budget) and by which memo lines."""

    hold: str | None
    lines: tuple[Line, ...]


def draw(project: str, open_hold: Hold | None, nano: int) -> Draw:
    """Charge an accrual of `nano` to the hold, beyond what is left in it to the budget.

    A negative `nano` (a provider's final meter was lower) goes back to the open hold, else to the budget.

    >>> [(line.account, line.nano) for line in draw("demo", None, 5).lines]
    [('Memo:Spent:Demo', 5), ('Memo:Budget:Demo', -5)]
    """
    if open_hold is None:
        return Draw(
            None, (Line(account=accounts.spent(project), nano=nano), Line(account=accounts.budget(project), nano=-nano))
        )
    from_hold = min(nano, open_hold.remaining_nano)
    moves = (
        (accounts.drawn(project), nano),
        (accounts.held(project), -from_hold),
        (accounts.budget(project), from_hold - nano),
    )
    return Draw(open_hold.id, tuple(Line(account=account, nano=moved) for account, moved in moves if moved))


async def _opened(session: AsyncSession, hold_id: str) -> Hold:
    opened = await hold(session, hold_id)
    if opened is None:
        raise HoldUnknown(f"hold {hold_id!r} was never opened")
    return opened


def _dims(opened: Hold) -> Dims:
    return Dims(project=opened.project, batch=opened.batch, rental=opened.rental, offer_key=opened.offer_key)


def scopes_of(opened: Hold) -> tuple[str, ...] | UnsetType:
    """The nodes that a hold counts against, as its events name them."""
    return tuple(opened.scopes.split()) or UNSET


def _set_aside(project: str, nano: int, unit: str) -> tuple[Line, ...]:
    return (
        Line(account=accounts.held(project), nano=nano, unit=unit),
        Line(account=accounts.budget(project), nano=-nano, unit=unit),
    )


def _resolution(opened: Hold) -> tuple[Line, ...]:
    """Remainder back to the budget, drawn to spent. One of the two is never zero, so the entry always has lines."""
    project, left, used = opened.project, opened.remaining_nano, opened.drawn_nano
    moves = (
        (accounts.budget(project), left),
        (accounts.held(project), -left),
        (accounts.spent(project), used),
        (accounts.drawn(project), -used),
    )
    return tuple(Line(account=account, nano=nano, unit=opened.unit) for account, nano in moves if nano)
