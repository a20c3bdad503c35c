"""Commitments: capacity bought ahead, amortised straight line; what nobody used is `Expenses:Unused`.

The purchase is an event `commitment.buy` whose facts name the commitment, its market and its term. The meter of what is
amortised is cumulative, like that of machines: what is booked is always the rounding of the whole, however often and late it
is looked at.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from ledger import accounts
from ledger.book import entries, lock, post
from ledger.event import Dims, Event, Exists, Facts, Line, Posted
from ledger.money import div_half_even
from ledger.tables import Entry, Posting

ACTOR = "broker.accrual"
HOUR_US = 3_600_000_000
_BOUGHT = "Assets:Commitments:"


@dataclass(frozen=True, slots=True)
class Commitment:
    """`nano` of `unit` for [start, end) at a market, bought at `bought_us`. `seconds` of machines are what it buys, where the
    purchase says so (None: one machine's, all of the term); `offer_key` is which."""

    id: str
    market: str
    unit: str
    nano: int
    start_us: int
    end_us: int
    bought_us: int = 0
    seconds: int | None = None
    offer_key: str | None = None
    account: str | None = None

    @property
    def asset(self) -> str:
        """The account that it is amortised from: the purchase's."""
        return self.account or account_of(self.id)


async def commitments(session: AsyncSession, *, project: str | None = None) -> list[Commitment]:
    """Everything that was bought with a term (by that project), by its purchase; corrections of it are not purchases."""
    found = []
    for each in await entries(session, kind="commitment.buy", project=project, limit=10_000):
        facts = each.event.facts
        if not isinstance(facts, Facts) or not facts.commitment or not facts.market:
            continue
        # by what it is, not by how its account is spelt: who writes events by hand must not lose the amortisation to a hyphen
        lines = [line for line in each.event.lines if line.account.startswith(_BOUGHT)]
        if lines and facts.from_us is not None and facts.until_us is not None and facts.from_us < facts.until_us:
            bought = sum(line.nano for line in lines if line.account == lines[0].account)
            found.append(
                Commitment(
                    id=facts.commitment,
                    market=facts.market,
                    unit=lines[0].unit,
                    nano=bought,
                    start_us=facts.from_us,
                    end_us=facts.until_us,
                    bought_us=each.event.occurred_at_us,
                    seconds=facts.seconds,
                    offer_key=each.event.dims.offer_key,
                    account=lines[0].account,
                )
            )
    return found


def account_of(commitment: str) -> str:
    return f"{_BOUGHT}{accounts.component(commitment)}"


def due(bought: Commitment, now_us: int) -> int:
    """What of it is amortised at `now_us`, in closed hours; all of it at its end. Pure.

    >>> due(Commitment("c", "aws", "USD", 100, 0, 3 * HOUR_US), 2 * HOUR_US + 5)
    67
    """
    if now_us >= bought.end_us:
        return bought.nano
    hours = max(0, now_us - bought.start_us) // HOUR_US
    return div_half_even(bought.nano * hours * HOUR_US, bought.end_us - bought.start_us)


def used_us(spans: Sequence[tuple[int, int]], start_us: int, end_us: int) -> int:
    """How much of [start, end) at least one of the spans covers. Pure.

    >>> used_us([(0, 5), (3, 8), (20, 30)], 2, 22)
    8
    """
    covered, until = 0, start_us
    for begun, ended in sorted(spans):
        first, last = max(begun, until), min(ended, end_us)
        if last > first:
            covered, until = covered + last - first, last
    return covered


async def amortise(
    session: AsyncSession, bought: Commitment, spans: Sequence[tuple[int, int]], *, now_us: int
) -> Posted | Exists | None:
    """Book what is due and not booked: by the time in which `spans` (start and end of its machines) used it to
    Compute:Committed, the rest to Unused. None when nothing is due."""
    await lock(session)
    booked, count, until = await _booked(session, bought)
    share = due(bought, now_us) - booked
    if share <= 0:
        return None
    start = until or bought.start_us
    end = min(bought.end_us, bought.start_us + (now_us - bought.start_us) // HOUR_US * HOUR_US)
    used = div_half_even(share * used_us(spans, start, end), max(1, end - start))
    moves = (
        (accounts.compute(bought.market, "reserved"), used),
        (f"Expenses:Unused:{accounts.component(bought.id)}", share - used),
        (bought.asset, -share),
    )
    event = Event(
        key=f"commitment.amortise:{bought.id}:{count + 1}:{end}",
        kind="commitment.amortise",
        occurred_at_us=end,
        actor=ACTOR,
        dims=Dims(),
        lines=tuple(Line(account=account, nano=nano, unit=bought.unit) for account, nano in moves if nano),
        facts=Facts(market=bought.market, pricing="reserved", commitment=bought.id, from_us=start, until_us=end),
    )
    return await post(session, event, recorded_at_us=now_us)


async def _booked(session: AsyncSession, bought: Commitment) -> tuple[int, int, int | None]:
    """What was amortised, in how many entries, and up to when."""
    query = (
        select(func.coalesce(func.sum(col(Posting.nano)), 0), func.count(), func.max(col(Entry.occurred_at_us)))
        .join(Entry, col(Entry.id) == col(Posting.entry_id))
        .where(col(Entry.kind) == "commitment.amortise", col(Posting.account) == bought.asset)
    )
    nano, count, until = (await session.execute(query)).one()
    return -int(nano), int(count), until
