"""What comes back: the part of a deposit that is returned when a machine's end is confirmed, and what a market does not charge
by its own terms.

A deposit lies with the market while the machine runs: out of the prepaid balance there, where the books have one, else owed. A
refund is expected until an invoice answers it: what it is for is then no longer owed (broker/finance/reconciliation.py).
"""

from __future__ import annotations

from typing import Literal

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from ledger import accounts
from ledger.accrual import Meter
from ledger.book import find, lock, post, selection
from ledger.event import Dims, Event, Facts, Kind, Line, Posted
from ledger.tables import Entry, Posting

KEYS = "back:"


async def pay_deposit(
    session: AsyncSession, meter: Meter, nano: int, *, occurred_at_us: int, actor: str, recorded_at_us: int
) -> Posted | None:
    """Book that `nano` nano-USD lie with the market for the rental; None when that is nothing, or was booked before."""
    key = f"{KEYS}{meter.rental}:deposit"
    if nano <= 0 or await find(session, key) is not None:
        return None
    source = accounts.of_market("Assets:Prepaid", meter.market)
    if await session.scalar(select(col(Posting.entry_id)).where(col(Posting.account) == source).limit(1)) is None:
        source = accounts.of_market("Liabilities:Payable", meter.market)
    moves = ((accounts.of_market("Assets:Deposit", meter.market), nano), (source, -nano))
    return await _post(session, meter, key, "deposit.pay", moves, "deposit", occurred_at_us, actor, recorded_at_us)


async def return_deposit(
    session: AsyncSession, meter: Meter, *, occurred_at_us: int, actor: str, recorded_at_us: int
) -> Posted | None:
    """Undo what `pay_deposit` booked; None when that was nothing, or it was undone before."""
    paid = await find(session, f"{KEYS}{meter.rental}:deposit")
    key = f"{KEYS}{meter.rental}:returned"
    if paid is None or await find(session, key) is not None:
        return None
    moves = tuple((line.account, -line.nano) for line in paid.event.lines)
    return await _post(session, meter, key, "deposit.return", moves, "returned", occurred_at_us, actor, recorded_at_us)


async def expect_refund(
    session: AsyncSession, meter: Meter, *, reason: str, actor: str, recorded_at_us: int
) -> list[Posted]:
    """Book that all of what the rental's time did cost will not be charged; nothing when that is nothing, or was booked before.

    One event for each month in which its time was booked: the provider's bill of a month answers for that month alone.
    """
    key = f"{KEYS}{meter.rental}:refund"
    months = await _metered(session, meter)
    if sum(nano for _, nano, _ in months) <= 0 or await find(session, key) is not None:
        return []
    posted = []
    for period, nano, last_us in months:
        moves = (
            (accounts.of_market("Assets:Receivable", meter.market), nano),
            (accounts.of_market("Income:Refunds", meter.market), -nano),
        )
        own = key if period == months[-1][0] else f"{key}:{period}"
        posted.append(
            await _post(session, meter, own, "refund.expected", moves, reason, last_us, actor, recorded_at_us)
        )
    return [each for each in posted if each is not None]


async def _metered(session: AsyncSession, meter: Meter) -> list[tuple[str, int, int]]:
    """What the rental's meter booked: month, nano-USD (not 0), when the last of it occurred; by month."""
    query = (
        select(col(Entry.period), func.sum(-col(Posting.nano)), func.max(col(Entry.occurred_at_us)))
        .join(Posting, col(Posting.entry_id) == col(Entry.id))
        .where(
            col(Entry.rental) == meter.rental,
            col(Entry.key).startswith(f"accrue:{meter.rental}:", autoescape=True),
            col(Posting.account) == accounts.accrued(meter.market),
        )
        .group_by(col(Entry.period))
        .order_by(col(Entry.period))
    )
    found = (await session.execute(query)).all()
    return [(period, int(nano), int(last_us)) for period, nano, last_us in found if nano]


async def loops_own(
    session: AsyncSession, *, project: str | None = None, batch: str | None = None, rental: str | None = None
) -> dict[tuple[str, str], int]:
    """What of deposits and receivables the loops or an invoice will book back themselves, in nano-units by account and unit.

    Nobody else may take it: it would come back a second time.
    """
    query = (
        select(col(Posting.account), col(Posting.unit), func.sum(col(Posting.nano)))
        .join(Entry, col(Entry.id) == col(Posting.entry_id))
        .where(
            col(Entry.key).startswith(KEYS),
            col(Posting.account).startswith("Assets:Deposit:") | col(Posting.account).startswith("Assets:Receivable:"),
            *selection(project=project, batch=batch, rental=rental),
        )
        .group_by(col(Posting.account), col(Posting.unit))
    )
    return {(account, unit): int(nano) for account, unit, nano in (await session.execute(query)).all() if nano > 0}


async def _post(
    session: AsyncSession, meter: Meter, key: str, kind: Literal["deposit.pay", "deposit.return", "refund.expected"],
    moves: tuple[tuple[str, int], ...], reason: str, occurred_at_us: int, actor: str, recorded_at_us: int,
) -> Posted | None:  # fmt: skip
    told: Kind = kind
    await lock(session)
    event = Event(
        key=key,
        kind=told,
        occurred_at_us=occurred_at_us,
        actor=actor,
        dims=Dims(project=meter.project, batch=meter.batch, rental=meter.rental, offer_key=meter.offer_key),
        lines=tuple(Line(account=account, nano=nano) for account, nano in moves),
        facts=Facts(market=meter.market, pricing=meter.pricing, reason=reason),
    )
    posted = await post(session, event, recorded_at_us=recorded_at_us)
    return posted if isinstance(posted, Posted) else None
