"""The books of a month as finance's tools want them: read in pages, each in a transaction of its own.

The books only grow at their end, so the pages fit together and no reader holds writers up. What is written into the month
while it is read is in the next export.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from operator import itemgetter
from typing import Any, cast, get_args

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from broker.database import Database
from ledger.book import selection
from ledger.focus.charge import UNITS, Charge, Pricing, Subject, amounts, category_of, foreign_of, metered
from ledger.journals import JournalEntry
from ledger.tables import Entry, Posting
from markets.offer import OfferKey
from markets.tables import RentalRow

PAGE = 5_000
SECOND_US = 1_000_000
Lines = tuple[tuple[str, str, int], ...]


@dataclass(frozen=True, slots=True)
class BookEntry:
    """An entry with its real lines (account, unit, nano); `facts` is what the event says beside its amounts."""

    id: str
    seq: int
    key: str
    kind: str
    occurred_at_us: int
    project: str | None
    batch: str | None
    rental: str | None
    offer_key: str | None
    corrects: str | None
    lines: Lines
    facts: Mapping[str, Any] = field(default_factory=dict)

    def as_journal(self) -> JournalEntry:
        return JournalEntry(self.id, self.seq, self.kind, self.occurred_at_us, self.project, self.rental, self.lines)


_COLUMNS = (
    "id", "seq", "key", "kind", "occurred_at_us", "project", "batch", "rental", "offer_key", "corrects",
)  # fmt: skip


async def pages(
    database: Database, period: str | None, *, project: str | None = None
) -> AsyncIterator[list[BookEntry]]:
    """The month's entries that move real money, in the order of the books; all months without a period."""
    after = 0
    while True:
        async with database.transaction() as session:
            heads = (await session.execute(_heads(period, project, after))).all()
            if not heads:
                return
            lines = await _lines(session, period, project, after, heads[-1].seq)
            facts = await _facts(session, [head.id for head in heads if not head.key.startswith("accrue:")])
        after = heads[-1].seq
        found = [
            BookEntry(
                **{name: getattr(head, name) for name in _COLUMNS}, lines=lines[head.id], facts=facts.get(head.id, {})
            )
            for head in heads
            if head.id in lines
        ]
        if found:
            yield found


def _heads(period: str | None, project: str | None, after: int) -> Any:
    query = select(*(col(getattr(Entry, name)) for name in _COLUMNS)).where(
        col(Entry.seq) > after, *selection(project=project)
    )
    return (query if period is None else query.where(col(Entry.period) == period)).order_by(col(Entry.seq)).limit(PAGE)


async def _lines(
    session: AsyncSession, period: str | None, project: str | None, after: int, last: int
) -> dict[str, Lines]:
    query = (
        select(col(Posting.entry_id), col(Posting.account), col(Posting.unit), col(Posting.nano))
        .join(Entry, col(Entry.id) == col(Posting.entry_id))
        .where(
            col(Entry.seq) > after,
            col(Entry.seq) <= last,
            col(Posting.account).not_like("Memo:%"),
            *selection(project=project),
        )
        .order_by(col(Entry.seq), col(Posting.line))
    )
    rows = (await session.execute(query if period is None else query.where(col(Entry.period) == period))).all()
    return {
        entry: tuple((account, unit, int(nano)) for _, account, unit, nano in group)
        for entry, group in groupby(rows, key=itemgetter(0))
    }


async def _facts(session: AsyncSession, ids: Sequence[str]) -> dict[str, Mapping[str, Any]]:
    """What events other than meter readings say of themselves: most entries are readings, and those say it in their key."""
    found: dict[str, Mapping[str, Any]] = {}
    for at in range(0, len(ids), 500):
        query = select(col(Entry.id), col(Entry.payload)).where(col(Entry.id).in_(ids[at : at + 500]))
        for entry, payload in (await session.execute(query)).all():
            document = json.loads(payload)
            if facts := document.get("facts"):
                found[entry] = facts
    return found


class Subjects:
    """The subjects of the charges that were read so far, by rental (or by what stands for one), numbered as they come."""

    def __init__(self) -> None:
        self.all: list[Subject] = []
        self._number: dict[tuple[str | None, str | None, str], int] = {}

    async def learn(self, session: AsyncSession, entries: Sequence[BookEntry]) -> None:
        """Read the rentals that these entries are of."""
        wanted = {entry.rental for entry in entries if entry.rental and not self._knows(entry)}
        rows: dict[str, RentalRow] = {}
        ids = sorted(wanted)
        for at in range(0, len(ids), 500):
            query = select(RentalRow).where(col(RentalRow.id).in_(ids[at : at + 500]))
            rows |= {row.id: row for row in await session.scalars(query)}
        for entry in entries:
            if not self._knows(entry):
                self._number[_key(entry)] = len(self.all)
                self.all.append(subject_of(entry, rows.get(entry.rental or "")))

    def number(self, entry: BookEntry) -> int:
        return self._number[_key(entry)]

    def _knows(self, entry: BookEntry) -> bool:
        return _key(entry) in self._number


def _key(entry: BookEntry) -> tuple[str | None, str | None, str]:
    if entry.rental:
        return entry.rental, entry.project, ""
    return None, entry.project, f"{market_of(entry)}/{entry.facts.get('pricing') or ''}"


def market_of(entry: BookEntry) -> str:
    """The market that an entry is of: its facts', its offer's, or the name in its accounts."""
    if told := entry.facts.get("market"):
        return str(told)
    if entry.offer_key:
        return entry.offer_key.partition("/")[0]
    for account, _, _ in entry.lines:
        if account.startswith(("Liabilities:", "Assets:Prepaid:", "Assets:Receivable:", "Expenses:")):
            return market_in(account)
    return "broker"


def market_in(account: str) -> str:
    """The market that an account's name ends with, as far as the name tells it.

    >>> market_in("Expenses:Compute:Spot:Aws"), market_in("Liabilities:Accrued:Vast-ai")
    ('aws', 'vast.ai')
    """
    name = account.rpartition(":")[2]
    return name.replace("--", "\0").replace("-", ".").replace("\0", "-").lower()


def subject_of(entry: BookEntry, row: RentalRow | None) -> Subject:
    """What was rented, out of the rental (its facts were frozen when it was placed), else out of the offer's key."""
    try:
        key = OfferKey.parse(entry.offer_key or "")
    except ValueError:  # an event of something else than a machine, or of one that a person wrote
        pricing = str(entry.facts.get("pricing") or "on_demand")
        return Subject(
            market=market_of(entry),
            project=entry.project,
            rental=entry.rental,
            offer_key=entry.offer_key,
            pricing=cast(Pricing, pricing) if pricing in get_args(Pricing) else "on_demand",
        )
    facts = {} if row is None else row.facts
    chip = facts.get("accelerator") or {}
    return Subject(
        market=key.provider,
        project=entry.project,
        rental=entry.rental,
        offer_key=entry.offer_key,
        pricing=key.pricing,
        region=key.region,
        zone=key.zone,
        sku=key.sku,
        launch=facts.get("launch") or "vm",
        host=facts.get("operator"),
        accelerator=key.accelerator,
        accelerators=key.count,
        memory_mib=int(chip.get("memory_mib") or 0),
        unit_nano=0 if row is None else row.price_nano_hour,
        list_nano=0 if row is None else _list_nano(row),
        started_us=None if row is None else row.started_us,
        model=None if row is None else row.model,
    )


def _list_nano(row: RentalRow) -> int:
    """What the same machine cost on demand at the same market when an interruptible one was chosen: the price that settlement
    books the saving against. What was known of other machines only is no list price of this one."""
    if row.pricing not in ("spot", "bid") or row.purpose.get("on_demand_elsewhere"):
        return 0
    return int(row.purpose.get("on_demand_nano_hour") or 0)


def charges_of(entry: BookEntry, number: int, subject: Subject, *, invoice: str | None) -> list[Charge]:
    """The rows that an entry becomes; none when it moves neither what is owed nor what was used up (a waste that moves from
    one expense to another, a payment). A commitment's hour is two: what was used of it, and what was not.
    """
    sums = amounts(entry.lines)
    category = category_of(entry.kind)
    effective = sums.billed if category == "Credit" else sums.effective  # FOCUS: a credit's two costs are one
    if not sums.billed and not effective:
        return []
    interval = metered(entry.key, entry.rental)
    seconds = (interval[1] - interval[0] if interval else entry.facts.get("seconds")) or None
    quantity = entry.facts.get("quantity_nano") if seconds is None else None
    begun, until = _times(entry, interval, subject.started_us)
    commitment = entry.facts.get("commitment")
    if seconds is None and quantity is None and entry.kind.startswith("commitment."):
        seconds = max(1, (until - begun) // SECOND_US)
    is_loose = category == "Usage" and seconds is None and quantity is None
    foreign_nano, foreign = foreign_of(entry.lines)
    whole = Charge(
        entry_id=entry.id,
        kind=entry.kind,
        # what was used without a quantity cannot be tied to a price, unless it corrects what was
        category="Adjustment" if is_loose and entry.kind != "correction" else category,
        is_correction=is_loose and entry.kind == "correction",
        subject=number,
        billed_nano=sums.billed,
        effective_nano=effective,
        seconds=seconds,
        start_us=begun,
        end_us=until,
        batch=entry.batch,
        invoice=invoice,
        quantity_nano=quantity,
        unit=UNITS.get(str(entry.facts.get("quantity_unit")), "Hours") if quantity is not None else "Hours",
        commitment=commitment or (entry.id if entry.kind.startswith("commitment.") else None),
        foreign_nano=foreign_nano,
        foreign=foreign,
    )
    return _used_and_unused(entry, whole) if entry.kind == "commitment.amortise" else [whole]


def _used_and_unused(entry: BookEntry, whole: Charge) -> list[Charge]:
    unused = sum(
        nano for account, unit, nano in entry.lines if unit == "USD" and account.startswith("Expenses:Unused:")
    )
    used = whole.effective_nano - unused
    seconds = whole.seconds or 0
    of_used = seconds * used // whole.effective_nano if whole.effective_nano else seconds
    parts = (("Used", used, of_used), ("Unused", unused, seconds - of_used))
    return [
        whole._replace(effective_nano=nano, seconds=max(1, part), status=status) for status, nano, part in parts if nano
    ]


def _times(entry: BookEntry, interval: tuple[int, int] | None, started_us: int | None) -> tuple[int, int]:
    """Start (inclusive) and end (exclusive) of what was charged for."""
    if entry.facts.get("from_us") is not None and entry.facts.get("until_us") is not None:
        return int(entry.facts["from_us"]), int(entry.facts["until_us"])
    if interval is None:
        return entry.occurred_at_us, entry.occurred_at_us + SECOND_US
    first, last = sorted(interval)
    origin = entry.occurred_at_us - last * SECOND_US if started_us is None else started_us
    return origin + first * SECOND_US, origin + last * SECOND_US
