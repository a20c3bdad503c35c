"""What a rental costs besides its time: the part of its deposit that stays with the provider, and the data that it moved.

Both are booked once, when the end is confirmed, as owed and not yet invoiced, and drawn from the hold that was opened for
them. So the invoice that has them on its lines is matched like any other.
"""

from __future__ import annotations

from typing import Literal

import msgspec
from sqlalchemy.ext.asyncio import AsyncSession

from ledger import accounts
from ledger.accrual import Meter
from ledger.book import find, lock, post
from ledger.event import Dims, Event, Facts, Kind, Line, Posted
from ledger.holds import draw, scopes_of
from ledger.positions import holds_of_rental

What = Literal["deposit", "data"]
_BOOKED: dict[What, tuple[Kind, str]] = {
    "deposit": ("deposit.return", "Expenses:Forfeited"),
    "data": ("usage.accrue", "Expenses:Egress"),
}


async def charge_besides(
    session: AsyncSession, meter: Meter, what: What, nano: int, *, occurred_at_us: int, actor: str, recorded_at_us: int
) -> Posted | None:
    """Book `nano` of the rental's deposit as lost, or for its data; None when that is nothing, or was booked before.

    What was booked first stands: a rental that is settled again is not charged again.
    """
    if nano <= 0:
        return None
    await lock(session)
    key = f"besides.{what}:{meter.rental}"
    if await find(session, key) is not None:
        return None
    holds = await holds_of_rental(session, meter.rental)
    open_hold = next((hold for hold in holds if hold.resolved is None), None)
    newest_hold = open_hold or (holds[-1] if holds else None)
    charged = draw(meter.project, open_hold, nano)
    kind, expense = _BOOKED[what]
    event = Event(
        key=key,
        kind=kind,
        occurred_at_us=occurred_at_us,
        actor=actor,
        dims=Dims(project=meter.project, batch=meter.batch, rental=meter.rental, offer_key=meter.offer_key),
        lines=(
            Line(account=accounts.of_market(expense, meter.market), nano=nano),
            Line(account=accounts.accrued(meter.market), nano=-nano),
            *charged.lines,
        ),
        hold=charged.hold,
        scopes=scopes_of(newest_hold) if newest_hold is not None else (meter.scopes or msgspec.UNSET),
        facts=Facts(market=meter.market, pricing=meter.pricing, reason="forfeited" if what == "deposit" else "moved"),
    )
    posted = await post(session, event, recorded_at_us=recorded_at_us)
    return posted if isinstance(posted, Posted) else None
