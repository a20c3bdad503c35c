"""Savings: what was not spent because an answer was there already. Memo entries: they move no real money and no budget."""

from __future__ import annotations

from typing import Literal

from sqlalchemy.ext.asyncio import AsyncSession

from ledger import accounts, book
from ledger.errors import MalformedEvent
from ledger.event import Dims, Event, Exists, Line, Posted


async def save(
    session: AsyncSession, *, key: str, nano: int, project: str, batch: str, occurred_at_us: int, actor: str
) -> Posted | Exists:
    """Book that `batch` was spared `nano` nano-USD (positive), once for each `key`. Raises what `ledger.book.post` raises."""
    return await book.post(
        session, saving(key, nano, project, batch, occurred_at_us, actor), recorded_at_us=occurred_at_us
    )


async def take_back(session: AsyncSession, *, key: str, occurred_at_us: int, actor: str) -> Posted | Exists | None:
    """The saving booked under `key` did not last: a correction of all of it, once. None when nothing was booked."""
    booked = await book.find(session, key)
    if booked is None:
        return None
    event = Event(
        key=f"{key}:back",
        kind="correction",
        occurred_at_us=occurred_at_us,
        actor=actor,
        dims=booked.event.dims,
        lines=tuple(Line(account=line.account, nano=-line.nano) for line in booked.event.lines),
        corrects=key,
    )
    return await book.post(session, event, recorded_at_us=occurred_at_us)


def saving(key: str, nano: int, project: str, batch: str, occurred_at_us: int, actor: str) -> Event:
    """The event. Pure.

    >>> [(line.account, line.nano) for line in saving("k", 5, "demo", "batch_1", 0, "reuse").lines]
    [('Memo:Saved:Demo', 5), ('Memo:Contra', -5)]
    """
    if nano <= 0:
        raise MalformedEvent(f"event {key!r}: a saving of {nano} nano-USD is none; post nothing")
    return Event(
        key=key,
        kind="saving.reuse",
        occurred_at_us=occurred_at_us,
        actor=actor,
        dims=Dims(project=project, batch=batch),
        lines=(Line(account=accounts.saved(project), nano=nano), Line(account=accounts.CONTRA, nano=-nano)),
    )


async def avoid(
    session: AsyncSession,
    *,
    against: Literal["OnDemand", "Api"],
    nano: int,
    project: str,
    rental: str,
    occurred_at_us: int,
    actor: str,
) -> Posted | Exists | None:
    """Book once what a rental's work would have cost more at the price of an alternative when it was chosen.

    A negative `nano` is booked, too: then the alternative would have been cheaper. None when it is 0.
    """
    if nano == 0:
        return None
    kind: Literal["saving.on_demand", "saving.api"] = "saving.on_demand" if against == "OnDemand" else "saving.api"
    key = f"{kind}:{rental}"
    if await book.find(session, key) is not None:
        return None  # the first settlement's word stays; a revised meter is told by its own entries
    account = accounts.avoided(against, project)
    event = Event(
        key=key,
        kind=kind,
        occurred_at_us=occurred_at_us,
        actor=actor,
        dims=Dims(project=project, rental=rental),
        lines=(Line(account=account, nano=nano), Line(account=accounts.CONTRA, nano=-nano)),
    )
    return await book.post(session, event, recorded_at_us=occurred_at_us)
