"""Sums over tables that only grow, read so that a scrape costs the same after a year as on the first day.

Ids begin with the time of their making, and a row that is over does not change any more. So rows below the oldest one that
still changes (and below an hour ago, for the clocks of replicas) are summed once and remembered; each scrape reads only
those above.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import ColumnElement, func, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col
from ulid import ULID

from jobs.clock import MICROSECONDS
from ledger.tables import Entry, Posting
from markets.own_account import provider_of

HOUR_US = 3600 * MICROSECONDS
Sums = Counter[tuple[tuple[str, ...], str]]


@dataclass
class Growing:
    """Sums of `sums` (name → expression) by `groups` over a table whose ids are `prefix` + ULID.

    `is_over` says of a row that what is summed here never changes again.
    """

    prefix: str
    id: Any
    groups: Sequence[Any]
    sums: dict[str, Any]
    is_over: ColumnElement[bool]
    _below: str = ""
    _settled: Sums = field(default_factory=Counter)

    async def read(self, session: AsyncSession, now_us: int) -> Sums:
        """(groups' values, name) → sum over all rows."""
        oldest = await session.scalar(select(func.min(self.id)).where(~self.is_over))
        hour_ago = self.prefix + str(ULID.from_timestamp(max(0, now_us - HOUR_US) / MICROSECONDS))
        below = min(oldest or hour_ago, hour_ago)
        if below > self._below:
            self._settled += await self._sums(session, self.id >= self._below, self.id < below)
            self._below = below
        return self._settled + await self._sums(session, self.id >= self._below)

    async def _sums(self, session: AsyncSession, *where: ColumnElement[bool]) -> Sums:
        rows = await session.execute(select(*self.groups, *self.sums.values()).where(*where).group_by(*self.groups))
        found: Sums = Counter()
        for row in rows:
            group = tuple(str(value) for value in row[: len(self.groups)])
            for name, value in zip(self.sums, row[len(self.groups) :], strict=True):
                found[group, name] += int(value or 0)
        return found


@dataclass
class Spent:
    """What the expense accounts say, by market, in nano-USD. Entries are numbered without gaps and never change."""

    _seq: int = 0
    _nano: Counter[str] = field(default_factory=Counter)

    async def read(self, session: AsyncSession) -> Counter[str]:
        newest = int(await session.scalar(select(func.max(col(Entry.seq)))) or 0)
        rows = await session.execute(
            select(col(Entry.offer_key), func.sum(col(Posting.nano)))
            .join(Posting, col(Posting.entry_id) == col(Entry.id))
            .where(col(Entry.seq) > self._seq, col(Entry.seq) <= newest)
            .where(col(Posting.account).startswith("Expenses:"))
            .group_by(col(Entry.offer_key))
        )
        for offer_key, nano in rows:
            self._nano[provider_of((offer_key or "-").partition("/")[0])] += int(nano)
        self._seq = newest
        return self._nano
