"""Waste: what of a rental's cost was of no use, and why. Decided once the end is confirmed, booked between expenses.

The whole stays what was accrued, to the nano: each category gets its share of the time between start and end (billing
minimums and increments are spread with it), by largest remainder.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from ledger import accounts
from ledger.accrual import Meter, read_meter
from ledger.allot import allot
from ledger.book import lock, post
from ledger.event import UNIT_USD, Dims, Event, Facts, Line, Posted
from ledger.tables import Entry, Posting

Category = Literal["useful", "startup", "idle", "lost_preempted", "lost_failed", "retried", "zombie"]
End = Literal["released", "preempted", "failed"]
_ACCOUNTS: Mapping[Category, str] = {
    "startup": "Expenses:Startup",
    "idle": "Expenses:Idle",
    "lost_preempted": "Expenses:Lost:Preempted",
    "lost_failed": "Expenses:Lost:FailedNode",
    "retried": "Expenses:Retried",
    "zombie": "Expenses:Zombie",
}


@dataclass(frozen=True, slots=True)
class Timeline:
    """A rental's life in microseconds: metered from `started_us` to `ended_us`; its worker could answer from `ready_us` to
    `gone_us` (None: never, or to the end). Its engine worked for `busy_us` on answers that count and `retried_us` on
    answers that another part had given. What it worked on after `committed_us` is lost when it did not end in good order.
    `nobody`: no worker was ever meant to be there, the machine leaked.
    """

    started_us: int
    ended_us: int
    ready_us: int | None
    gone_us: int | None
    busy_us: int
    retried_us: int
    committed_us: int | None
    end: End
    nobody: bool = False


def time_by_category(life: Timeline) -> dict[Category, int]:
    """Microseconds by category; they sum to the whole. The clocks of market and broker may differ: nothing gets negative.

    >>> time_by_category(Timeline(0, 100, 10, 90, 50, 5, 60, "preempted"))
    {'useful': 50, 'startup': 10, 'idle': 0, 'lost_preempted': 25, 'lost_failed': 0, 'retried': 5, 'zombie': 10}
    >>> time_by_category(Timeline(0, 100, None, None, 0, 0, None, "failed"))["lost_failed"]
    100
    """
    found: dict[Category, int] = {
        "useful": 0, "startup": 0, "idle": 0, "lost_preempted": 0, "lost_failed": 0, "retried": 0, "zombie": 0,
    }  # fmt: skip
    whole = max(0, life.ended_us - life.started_us)
    if whole == 0:
        return found
    lost: Category = "lost_preempted" if life.end == "preempted" else "lost_failed"
    if life.nobody:
        found["zombie"] = whole
        return found
    gone = min(max(life.gone_us if life.gone_us is not None else life.ended_us, life.started_us), life.ended_us)
    if life.ready_us is None:
        before = gone - life.started_us
        found["startup" if life.end == "released" else lost] = max(0, before)
        found["zombie"] = whole - max(0, before)
        return found
    ready = min(max(life.ready_us, life.started_us), max(gone, life.started_us))
    found["startup"] = ready - life.started_us
    alive = max(0, gone - ready)
    found["zombie"] = whole - found["startup"] - alive
    found["useful"] = min(life.busy_us, alive)
    found["retried"] = min(life.retried_us, alive - found["useful"])
    rest = alive - found["useful"] - found["retried"]
    if life.end != "released":
        since = max(ready, min(life.committed_us or ready, gone))
        found[lost] = min(rest, gone - since)
    found["idle"] = rest - found[lost]
    return found


def shares(total_nano: int, life: Timeline) -> dict[Category, int]:
    """The cost by category, summing to `total_nano` exactly. A life of no time at all is all useful."""
    times = time_by_category(life)
    if not any(times.values()):
        return {"useful": total_nano}
    return dict(zip(times, allot(total_nano, list(times.values())), strict=True))


async def split(
    session: AsyncSession, meter: Meter, life: Timeline, *, occurred_at_us: int, actor: str, recorded_at_us: int
) -> Posted | None:
    """Move what of the rental's cost was waste out of its compute account; None when the books say so already.

    What is moved is the difference to what was moved before: a final reading that is revised revises the split.
    """
    await lock(session)
    total = (await read_meter(session, meter.rental)).nano
    by_category = shares(max(0, total), life)
    return await _move(
        session, meter, by_category, (life.started_us, life.ended_us), occurred_at_us, actor, recorded_at_us
    )


async def split_tokens(
    session: AsyncSession, meter: Meter, wasted_nano: int, *, occurred_at_us: int, actor: str, recorded_at_us: int
) -> Posted | None:
    """The same where tokens were bought: what was paid for answers that do not count. No time is idle that is not paid for."""
    await lock(session)
    span = (meter.started_us, max(meter.started_us, occurred_at_us))
    return await _move(session, meter, {"retried": wasted_nano}, span, occurred_at_us, actor, recorded_at_us)


async def _move(
    session: AsyncSession,
    meter: Meter,
    by_category: Mapping[Category, int],
    span: tuple[int, int],
    occurred_at_us: int,
    actor: str,
    recorded_at_us: int,
) -> Posted | None:
    wanted = {
        accounts.of_market(_ACCOUNTS[category], meter.market): nano
        for category, nano in by_category.items()
        if category != "useful"
    }
    booked, count = await _booked(session, meter.rental)
    compute = accounts.compute(meter.market, meter.pricing)
    moves = {name: wanted.get(name, 0) - booked.get(name, 0) for name in sorted({*wanted, *booked} - {compute})}
    lines = [Line(account=name, nano=nano) for name, nano in moves.items() if nano]
    if not lines:
        return None
    out = sum(line.nano for line in lines)
    if out:
        lines.append(Line(account=compute, nano=-out))
    worst = max(moves, key=lambda name: moves[name])
    event = Event(
        key=f"waste:{meter.rental}:{count + 1}",
        kind="usage.waste",
        occurred_at_us=occurred_at_us,
        actor=actor,
        dims=Dims(project=meter.project, batch=meter.batch, rental=meter.rental, offer_key=meter.offer_key),
        lines=tuple(lines),
        facts=Facts(
            market=meter.market,
            pricing=meter.pricing,
            reason=_reason(worst),
            from_us=span[0],
            until_us=span[1],
        ),
    )
    posted = await post(session, event, recorded_at_us=recorded_at_us)
    return posted if isinstance(posted, Posted) else None


def _reason(account: str) -> str:
    """The code of the largest part."""
    return next(category for category, name in _ACCOUNTS.items() if account.startswith(f"{name}:"))


async def _booked(session: AsyncSession, rental: str) -> tuple[dict[str, int], int]:
    """What was moved before, by account, and how many times."""
    query = (
        select(col(Posting.account), func.sum(col(Posting.nano)))
        .join(Entry, col(Entry.id) == col(Posting.entry_id))
        .where(col(Entry.rental) == rental, col(Entry.kind) == "usage.waste", col(Posting.unit) == UNIT_USD)
        .group_by(col(Posting.account))
    )
    moved = {account: int(nano) for account, nano in (await session.execute(query)).all()}
    times = select(func.count()).select_from(Entry).where(col(Entry.rental) == rental, col(Entry.kind) == "usage.waste")
    return moved, int((await session.execute(times)).scalar_one())
