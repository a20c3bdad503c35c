"""Who decides, where several brokers share one PostgreSQL database: one leader, and a term that fences off the last one.

Each broker keeps one connection beside its pool. Whoever holds the advisory lock on it leads: it raises the one `Term`
row, and everything that a deciding loop writes is checked against that number inside the same transaction. A leader
that is paused or cut off loses the lock because the server ends a connection on which nothing is said for `patience_s`;
what it had begun is rolled back, what it begins later meets a higher term and is refused. The successor's raising waits
for transactions of the term before, so none of them is committed after it.

The same connection listens for nudges of the other brokers (NOTIFY): a batch that is created at one is validated at once
by the one that leads. A nudge that is lost costs one tick of the loop.

With SQLite there is one process for one file (contract C16), and it leads.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace

import structlog
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from broker.tables import Term

log = structlog.get_logger()
Guard = Callable[[AsyncSession], Awaitable[None]]

THE_TERM = 1


class Deposed(Exception):
    """Another broker leads since; what this one was about to decide is not written."""

    code = "deposed"

    def __init__(self, *, mine: int, current: int) -> None:
        super().__init__(f"this broker led in term {mine}, now it is term {current}: nothing was written")
        self.mine, self.current = mine, current


@dataclass(frozen=True, slots=True)
class Standing:
    """What this broker may do. `term` is set while it leads; `trouble` is why it has no word from the database."""

    term: int | None = None
    trouble: str | None = None

    @property
    def leads(self) -> bool:
        return self.term is not None


@dataclass(frozen=True, slots=True)
class Elected:
    """The lock is ours, and the term is raised."""

    term: int


@dataclass(frozen=True, slots=True)
class Passed:
    """The lock is another's."""


@dataclass(frozen=True, slots=True)
class Cut:
    """The connection broke, and with it the lock, if it was ours."""

    trouble: str


News = Elected | Passed | Cut


def after(standing: Standing, news: News) -> Standing:
    """What a broker may do once it has heard this.

    >>> after(Standing(), Elected(7))
    Standing(term=7, trouble=None)
    >>> after(Standing(term=7), Cut("server closed the connection"))
    Standing(term=None, trouble='server closed the connection')
    >>> after(Standing(trouble="server closed the connection"), Passed())
    Standing(term=None, trouble=None)
    """
    match news:
        case Elected(term):
            return Standing(term=term)
        case Passed():
            return Standing()
        case Cut(trouble):
            return replace(standing, term=None, trouble=trouble)


@dataclass
class Leadership:
    """How this broker stands. `changed` are called when it begins or ceases to lead."""

    standing: Standing = Standing(term=0)
    changed: list[Callable[[Standing], None]] = field(default_factory=list)

    @property
    def leads(self) -> bool:
        return self.standing.leads

    def hear(self, news: News) -> None:
        before, self.standing = self.standing, after(self.standing, news)
        if self.standing == before:
            return
        if self.standing.trouble is not None:
            log.warning("leader.cut_off", led_term=before.term, error=self.standing.trouble)
        else:
            log.info("leader.elected" if self.leads else "leader.standing_by", term=self.standing.term)
        if self.standing.term != before.term:
            for act in self.changed:
                act(self.standing)


def fence(term: int) -> Guard:
    """What each transaction of a leader's loop begins with. The row stays locked to its end, so that a successor's first
    act comes after our last. Raises Deposed."""

    async def guard(session: AsyncSession) -> None:
        current = await session.scalar(
            select(col(Term.term)).where(col(Term.id) == THE_TERM).with_for_update(read=True)
        )
        if current != term:
            raise Deposed(mine=term, current=current or 0)

    return guard
