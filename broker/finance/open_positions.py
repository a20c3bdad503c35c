"""The report on open positions: what the house holds and owes in other currencies and coins, at the rates of a day."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from sqlalchemy import func, or_, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from broker.control.convert import usd
from broker.finance.report import Report, Section
from ledger import rates
from ledger.book import entries
from ledger.errors import NoRate
from ledger.event import Event
from ledger.lots import KINDS, Lot
from ledger.rates import USD, DatedRate
from ledger.revaluation import OpenLot, Valued, lots_after, revalued, total, valued
from ledger.tables import Entry, Posting
from ledger.units import unit

_PAGE = 1000
UNKNOWN = "-"


async def positions(session: AsyncSession, *, until_us: int) -> Report:
    """What was held just before `until_us`, at the newest rates that were known of then. Raises LotsExhausted when an exchange
    of before that time spends what was bought after it."""
    known = await rates.newest(session, at_us=until_us - 1)
    lots = lots_after(await _exchanges(session, until_us))
    opened = revalued(lots, known, await _bought_at(session, lots))
    held = [(account, valued(nano, code, known)) for account, code, nano in await _balances(session, until_us)]
    without = sorted(
        {each.unit for each in (*(one.worth for one in opened), *(one for _, one in held)) if not each.rate}
    )
    gains = [each.gain_nano for each in opened]
    return Report(
        title="Open positions",
        facts=[
            ("until", f"{datetime.fromtimestamp(until_us / 1_000_000, UTC):%Y-%m-%d %H:%M:%S} (UTC)"),
            ("lots' cost USD", usd(total(each.cost_usd_nano for each in opened))),
            ("lots' worth USD", usd(total(each.worth.usd_nano for each in opened))),
            ("unrealised gain USD", usd(total(gains))),
            ("balances' worth USD", usd(total(each.usd_nano for _, each in held))),
            ("units without a rate, in no sum", ", ".join(without) or "none"),
        ],
        sections=[_lots(opened), _accounts(held)],
    )


async def _exchanges(session: AsyncSession, until_us: int) -> list[tuple[int, Event]]:
    """What bought or spent coins, in the order of the books."""
    found: list[tuple[int, Event]] = []
    for kind in sorted(KINDS):
        after = 0
        while page := await entries(session, kind=kind, after_seq=after, limit=_PAGE):
            found += [(each.seq, each.event) for each in page if each.event.occurred_at_us < until_us]
            after = page[-1].seq
    return sorted(found, key=lambda each: each[0])


async def _bought_at(session: AsyncSession, lots: Sequence[Lot]) -> dict[int, DatedRate | None]:
    """The rate of each lot's cost when it was bought, where that was not paid in USD."""
    found: dict[int, DatedRate | None] = {}
    for lot in lots:
        if lot.cost_unit == USD:
            continue
        try:
            found[lot.seq] = await rates.rate_at(session, lot.cost_unit, at_us=lot.bought_us)
        except NoRate:
            found[lot.seq] = None  # shown as unknown
    return found


async def _balances(session: AsyncSession, until_us: int) -> list[tuple[str, str, int]]:
    """(account, unit, nano) of what is held and owed in other currencies than USD, without what is 0."""
    query = (
        select(col(Posting.account), col(Posting.unit), func.sum(col(Posting.nano)))
        .join(Entry, col(Entry.id) == col(Posting.entry_id))
        .where(
            col(Entry.occurred_at_us) < until_us,
            col(Posting.unit) != USD,
            or_(col(Posting.account).startswith("Assets:"), col(Posting.account).startswith("Liabilities:")),
        )
        .group_by(col(Posting.account), col(Posting.unit))
        .order_by(col(Posting.unit), col(Posting.account))
    )
    rows = (await session.execute(query)).all()
    return [(account, code, int(nano)) for account, code, nano in rows if nano and unit(code).kind != "quantity"]


def _lots(opened: Sequence[OpenLot]) -> Section:
    columns = ("unit", "lot", "bought", "left", "cost", "cost in", "cost USD", "rate", "worth USD", "unrealised USD")
    rows = [
        (
            each.lot.unit,
            str(each.lot.seq),
            _day(each.lot.bought_us),
            usd(each.lot.left_nano),
            usd(each.lot.left_cost_nano),
            each.lot.cost_unit,
            _known(each.cost_usd_nano),
            _rate(each.worth.rate),
            _known(each.worth.usd_nano),
            _known(each.gain_nano),
        )
        for each in opened
    ]
    note = "first in, first out; a gain is booked when the lot is spent" if rows else "none"
    return Section("Lots", columns, rows, note)


def _accounts(held: Sequence[tuple[str, Valued]]) -> Section:
    columns = ("account", "unit", "balance", "rate", "dated", "source", "worth USD")
    rows = [
        (
            account,
            each.unit,
            usd(each.nano),
            _rate(each.rate),
            UNKNOWN if each.rate is None else _day(each.rate.at_us),
            UNKNOWN if each.rate is None else each.rate.source,
            _known(each.usd_nano),
        )
        for account, each in held
    ]
    return Section("Balances", columns, rows, "debts are negative" if rows else "none")


def _known(nano: int | None) -> str:
    return UNKNOWN if nano is None else usd(nano)


def _rate(rate: DatedRate | None) -> str:
    return UNKNOWN if rate is None else f"{rate.rate:f}"


def _day(micros: int) -> str:
    return f"{datetime.fromtimestamp(micros / 1_000_000, UTC):%Y-%m-%d}"
