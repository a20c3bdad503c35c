"""Rest: while there is nothing to do, the loops do next to nothing.

A dozen loops that look at the database some times a second are a sixth of a core, whether or not there is a batch. One
query answers for all of them; its answer holds until somebody commits something, and for a second at the most: a webhook
may come due. Where other brokers commit to the same database it does not hold at all. A step that is let off runs all
the same every so often: what no row tells of (a machine at a market that nobody remembers) is found then.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

from sqlalchemy import exists, or_, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from broker.database import Database
from broker.tables import Delivery
from jobs.clock import db_now
from jobs.tables import Batch, OutboxEvent
from jobs.types import TERMINAL
from markets.rentals import OPEN, OVER
from markets.tables import RentalRow

Step = Callable[[], Awaitable[None]]
# A minute of the default intervals.
LET_OFF = 12
HOLDS_S = 1.0
# The loops whose work is told by rows alone. Markets are polled and storage is collected at their own, long intervals.
RESTING = frozenset(
    (
        "validate",
        "plan",
        "place",
        "reconcile",
        "settle",
        "accrue",
        "finalise",
        "deliver",
        "answer",
        "remember",
        "watch",
        "budget",
    )
)


@dataclass
class Rest:
    """Whether there is nothing to do. `stir` is called after each commit of this process; `holds_s` is for how long an
    answer may be given again."""

    database: Database
    holds_s: float = HOLDS_S
    clock: Callable[[], float] = time.monotonic
    _turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    _until_s: float = float("-inf")
    _commits: int = 0
    _own: AsyncSession | None = None

    def __post_init__(self) -> None:
        self.database.after_commit.append(self.stir)

    def stir(self, session: AsyncSession) -> None:
        if session is not self._own:
            self._commits += 1
            self._until_s = float("-inf")

    async def is_resting(self) -> bool:
        async with self._turn:
            if self.clock() < self._until_s:
                return True
            before_s, commits = self.clock(), self._commits
            async with self.database.transaction() as session:
                self._own = session
                is_busy = await _is_busy(session)
            if not is_busy and self._commits == commits:
                self._until_s = before_s + self.holds_s
            return not is_busy

    def spare(self, steps: Mapping[str, tuple[float, Step]]) -> Mapping[str, tuple[float, Step]]:
        """The same steps at the same intervals, let off while there is nothing for them to do."""
        return {
            name: (every_s, self._spared(step) if name in RESTING else step) for name, (every_s, step) in steps.items()
        }

    def _spared(self, step: Step) -> Step:
        let_off = LET_OFF  # the first is not: it finds what a crash left behind

        async def spared() -> None:
            nonlocal let_off
            if let_off < LET_OFF and await self.is_resting():
                let_off += 1
                return
            let_off = 0
            await step()

        return spared


async def _is_busy(session: AsyncSession) -> bool:
    """A batch that goes on or whose answers are to be remembered, a machine that costs or is not settled, an event that
    somebody is to be told of now."""
    rental, batch = col(RentalRow.state), col(Batch.status)
    remembered = col(Batch.revision).is_not(None) & col(Batch.remembered_us).is_(None)
    now_us = await db_now(session)
    found = or_(
        exists().where(or_(batch.not_in(TERMINAL), remembered & (batch != "failed"))),
        exists().where(or_(rental.in_(OPEN), rental.in_(OVER) & col(RentalRow.settled).is_(False))),
        exists().where(col(OutboxEvent.delivered_us).is_(None)),
        exists().where(col(Delivery.next_us) <= now_us),
    )
    return bool(await session.scalar(select(found)))
