"""The audit: everything that must be true of the books, checked against the rows themselves. Reads only."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Literal

import msgspec
from msgspec import UNSET
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from ledger import lots, seal
from ledger.accrual import LEAKED, is_meter_entry, reading_of
from ledger.book import Recorded, entry_id_of, leaf_of, recorded
from ledger.errors import LedgerError, MalformedEvent
from ledger.event import Event, Facts
from ledger.lots import Lot
from ledger.merkle import Frontier, leaf_hash
from ledger.positions import RESOLUTIONS, Hold, all_holds, moved, opened
from ledger.rules import check_event, period_of
from ledger.standing import closed_by, following, uses_of
from ledger.tables import Entry, Head, Posting, ScopeUse
from ledger.token_meter import is_token_entry, token_reading_of
from ledger.units import NANO_PER_TOKEN

_PAGE = 500


class LedgerFinding(msgspec.Struct, frozen=True, kw_only=True):
    """Something that is not as it must be: `subject` is the entry, hold or unit, `message` what is wrong with it.

    `error`: the books are wrong. `warning`: the books are right, but money moved in a way that it should not have.
    """

    code: str
    severity: Literal["error", "warning"]
    subject: str
    message: str


def _error(code: str, subject: object, message: str) -> LedgerFinding:
    return LedgerFinding(code=code, severity="error", subject=str(subject), message=message)


async def check(session: AsyncSession, *, ended_rentals: AbstractSet[str] = frozenset()) -> list[LedgerFinding]:
    """All findings, in the order of the books. `ended_rentals`: ids of rentals whose end the market has confirmed."""
    findings: list[LedgerFinding] = []
    expected_seq = 1
    trail = _Trail()
    async for entry, postings in _books(session):
        if entry.seq != expected_seq:
            findings.append(_error("seq_gap", entry.id, f"entry has number {entry.seq} where {expected_seq} is due"))
        expected_seq = entry.seq + 1
        findings += _check_postings(entry, postings)
        event = _decoded(entry)
        findings += _check_payload(entry, event)
        if isinstance(event, Event):
            findings += _check_repeats(entry, event, postings, trail.period(event))
            findings += trail.follow(recorded(entry))
    findings += await _check_head(session, expected_seq - 1)
    findings += await _check_strays(session)
    findings += await _check_units(session)
    findings += await _check_resolutions(session)
    findings += _check_hold_states(await all_holds(session), trail.holds)
    findings += await _check_lots(session, trail)
    findings += await _check_uses(session, trail)
    findings += await _check_seal(session)
    findings += _check_holds(trail.holds.values(), ended_rentals)
    return findings


async def _books(session: AsyncSession) -> AsyncIterator[tuple[Entry, Sequence[Posting]]]:
    after = 0
    while True:
        page = select(Entry).where(col(Entry.seq) > after).order_by(col(Entry.seq)).limit(_PAGE)
        rows = (await session.execute(page, execution_options={"populate_existing": True})).scalars().all()
        if not rows:
            return
        lines = select(Posting).where(col(Posting.entry_id).in_([row.id for row in rows])).order_by(col(Posting.line))
        by_entry: dict[str, list[Posting]] = {row.id: [] for row in rows}
        for line in (await session.execute(lines, execution_options={"populate_existing": True})).scalars():
            by_entry[line.entry_id].append(line)
        for row in rows:
            yield row, by_entry[row.id]
        after = rows[-1].seq


class _Trail:
    """What the entries so far add up to, followed event by event: rentals under a hold, holds, meters."""

    def __init__(self) -> None:
        self.covered: set[str] = set()
        self.holds: dict[str, Hold] = {}
        self.metered: dict[str, int] = {}
        self.tokens: dict[str, int] = {}
        self.closed: set[str] = set()
        self.uses: dict[tuple[str, str, str], int] = {}
        self.pools: dict[str, list[Lot]] = {}

    def period(self, event: Event) -> str:
        """The month that the event has to be booked in, by what the entries before it closed."""
        period = period_of(event.occurred_at_us)
        while period in self.closed:
            period = following(period)
        return period

    def follow(self, entry: Recorded) -> Iterator[LedgerFinding]:
        event = entry.event
        if event.kind == "hold.open":
            self.covered.add(event.dims.rental or "")
            self.holds[event.hold or ""] = opened(event, entry.seq)
        elif event.hold in self.holds:
            self.holds[event.hold] = moved(self.holds[event.hold], event)
        elif event.hold is not None:
            yield _error(
                "hold_unknown", entry.entry_id, f"entry {entry.seq} names hold {event.hold}, never opened before"
            )
        is_covered = event.dims.rental in self.covered or event.actor == LEAKED
        if event.kind == "usage.accrue" and not is_covered:
            message = f"entry {entry.seq} accrues for rental {event.dims.rental} before any hold was opened"
            yield _error("accrual_without_hold", entry.entry_id, message)
        if is_meter_entry(event):
            yield from self._follow_meter(entry)
        elif is_token_entry(event):
            yield from self._follow_tokens(entry)
        period = self.period(event)
        for use, nano in uses_of(event, event.dims.project, period) if event.dims.project else ():
            self.uses[use] = self.uses.get(use, 0) + nano
        if event.kind == "period.close":
            self.closed |= closed_by(event)
        try:
            lots.admit(event, self.pools)
            lots.moved(event, entry.seq, self.pools)
        except LedgerError as problem:
            yield _error("lots_differ", entry.entry_id, f"entry {entry.seq}: {problem}")

    def _follow_meter(self, entry: Recorded) -> Iterator[LedgerFinding]:
        """Why: a meter trusts the total in its newest key; it must be what was booked."""
        try:
            told = reading_of(entry).nano
        except MalformedEvent as problem:
            self._booked(entry)
            yield _error("meter_differs", entry.entry_id, str(problem))
            return
        yield from self._compare(entry, told)

    def _follow_tokens(self, entry: Recorded) -> Iterator[LedgerFinding]:
        """Why: as with time, and the export's quantity is of the tokens that the key counts."""
        facts = entry.event.facts
        rental = entry.event.dims.rental or ""
        quantity = facts.quantity_nano if isinstance(facts, Facts) else UNSET
        self.tokens[rental] = self.tokens.get(rental, 0) + (quantity if isinstance(quantity, int) else 0)
        try:
            told = token_reading_of(entry)
        except MalformedEvent as problem:
            self._booked(entry)
            yield _error("meter_differs", entry.entry_id, str(problem))
            return
        yield from self._compare(entry, told.nano)
        if told.tokens * NANO_PER_TOKEN != self.tokens[rental]:
            message = (
                f"entry {entry.seq} says {told.tokens} tokens were metered for {rental}, the quantities of its entries sum to "
                f"{self.tokens[rental] // NANO_PER_TOKEN}"
            )
            yield _error("meter_differs", entry.entry_id, message)

    def _compare(self, entry: Recorded, told: int) -> Iterator[LedgerFinding]:
        booked = self._booked(entry)
        if told != booked:
            message = f"entry {entry.seq} says {told} nano of {entry.event.dims.rental} were metered, its entries sum to {booked}"
            yield _error("meter_differs", entry.entry_id, message)

    def _booked(self, entry: Recorded) -> int:
        """What a meter booked, with this entry."""
        rental = entry.event.dims.rental or ""
        nano = -sum(line.nano for line in entry.event.lines if line.account.startswith("Liabilities:Accrued:"))
        self.metered[rental] = self.metered.get(rental, 0) + nano
        return self.metered[rental]


def _decoded(entry: Entry) -> Event | str:
    """The event in the stored bytes, or what is wrong with them."""
    try:
        event = msgspec.json.decode(entry.payload, type=Event)
        check_event(event)
    except (msgspec.DecodeError, UnicodeDecodeError, LedgerError) as problem:
        return str(problem)
    return event


def _check_payload(entry: Entry, event: Event | str) -> Iterator[LedgerFinding]:
    """The stored bytes are an event and hash to what was recorded.

    Why: they are what every export is a projection of.
    """
    # SQLite would let a tamperer store text where bytes belong.
    payload = entry.payload if isinstance(entry.payload, bytes) else str(entry.payload).encode()
    if hashlib.sha256(payload).hexdigest() != entry.sha256:
        yield _error("payload_changed", entry.id, f"the bytes of entry {entry.seq} do not hash to {entry.sha256}")
    if isinstance(event, str):
        yield _error("payload_unreadable", entry.id, f"the bytes of entry {entry.seq} are no event: {event}")


def _check_repeats(entry: Entry, event: Event, postings: Sequence[Posting], period: str) -> Iterator[LedgerFinding]:
    """Columns and postings repeat the stored bytes.

    Why: queries read columns; one that differs would show finance another story.
    """
    differing = [name for name, value in _repeated(event, entry, period).items() if getattr(entry, name) != value]
    if differing:
        yield _error("columns_changed", entry.id, f"{', '.join(differing)} of entry {entry.seq} differ from its bytes")
    told = [(number, line.account, line.unit, line.nano) for number, line in enumerate(event.lines)]
    if told != [(row.line, row.account, row.unit, row.nano) for row in postings]:
        yield _error("postings_changed", entry.id, f"the postings of entry {entry.seq} differ from its bytes")


def _repeated(event: Event, entry: Entry, period: str) -> dict[str, object]:
    return {
        "id": entry_id_of(event.key, entry.recorded_at_us),
        "key": event.key,
        "kind": event.kind,
        "occurred_at_us": event.occurred_at_us,
        "period": period,
        "actor": event.actor,
        **msgspec.structs.asdict(event.dims),
        "corrects": event.corrects,
        "hold": event.hold,
    }


def _check_postings(entry: Entry, postings: Sequence[Posting]) -> Iterator[LedgerFinding]:
    """Sealed, at least two lines, debits equal credits in every unit.

    Why: an entry that does not balance creates or destroys money.
    """
    if not entry.sealed:
        yield _error("not_sealed", entry.id, f"entry {entry.seq} was never sealed")
    if len(postings) < 2:
        yield _error("too_few_postings", entry.id, f"entry {entry.seq} has {len(postings)} postings")
    if not all(isinstance(row.nano, int) for row in postings):
        yield _error("amount_not_integer", entry.id, f"entry {entry.seq} has an amount that is not an integer")
        return
    for unit in sorted({row.unit for row in postings}):
        difference = sum(row.nano for row in postings if row.unit == unit)
        if difference:
            yield _error(
                "entry_unbalanced", entry.id, f"entry {entry.seq}: debits exceed credits by {difference} nano-{unit}"
            )


async def _check_head(session: AsyncSession, newest: int) -> list[LedgerFinding]:
    head = (await session.execute(select(col(Head.seq)).where(col(Head.id) == 1))).scalar_one_or_none()
    if head == newest:
        return []
    return [
        _error(
            "head_differs",
            "ledger_head",
            f"the head says {head}, the newest entry is {newest}; entries are missing or forged",
        )
    ]


async def _check_strays(session: AsyncSession) -> list[LedgerFinding]:
    strays = select(col(Posting.entry_id)).where(col(Posting.entry_id).not_in(select(col(Entry.id)))).distinct()
    ids = (await session.execute(strays)).scalars()
    return [_error("stray_postings", entry, f"postings of {entry}, which is no entry") for entry in ids]


async def _check_units(session: AsyncSession) -> list[LedgerFinding]:
    sums = (
        select(col(Posting.unit), func.sum(col(Posting.nano))).group_by(col(Posting.unit)).order_by(col(Posting.unit))
    )
    rows = (await session.execute(sums)).all()
    return [
        _error("books_unbalanced", unit, f"all postings in {unit} sum to {nano} nano, not 0")
        for unit, nano in rows
        if nano
    ]


async def _check_resolutions(session: AsyncSession) -> list[LedgerFinding]:
    counts = (
        select(col(Entry.hold), func.count())
        .where(col(Entry.kind).in_(RESOLUTIONS))
        .group_by(col(Entry.hold))
        .having(func.count() > 1)
        .order_by(col(Entry.hold))
    )
    rows = (await session.execute(counts)).all()
    return [_error("hold_resolved_twice", hold, f"hold {hold} was resolved {count} times") for hold, count in rows]


def _check_hold_states(kept: Sequence[Hold], followed: Mapping[str, Hold]) -> Iterator[LedgerFinding]:
    """The kept state of every hold is what its entries add up to.

    Why: holds are refused and drawn on by the kept state.
    """
    states = {hold.id: hold for hold in kept}
    for hold_id in sorted(states.keys() | followed.keys()):
        state, told = states.get(hold_id), followed.get(hold_id)
        if state != told:
            yield _error("hold_state_differs", hold_id, f"kept as {state}, its entries add up to {told}")


async def _check_lots(session: AsyncSession, trail: _Trail) -> list[LedgerFinding]:
    """Why: what is spent is priced by the kept lots."""
    kept = {(lot.unit, lot.seq): lot for lot in await lots.all_lots(session)}
    told = {(lot.unit, lot.seq): lot for pool in trail.pools.values() for lot in pool}
    return [
        _error("lot_differs", f"{unit}:{seq}", f"kept as {kept.get((unit, seq))}, entries say {told.get((unit, seq))}")
        for unit, seq in sorted(kept.keys() | told.keys())
        if kept.get((unit, seq)) != told.get((unit, seq))
    ]


async def _check_uses(session: AsyncSession, trail: _Trail) -> list[LedgerFinding]:
    """Why: nodes of the budget tree refuse holds by the kept sums."""
    rows = (await session.execute(select(ScopeUse), execution_options={"populate_existing": True})).scalars()
    kept = {(row.scope, row.unit, row.window): row.nano for row in rows}
    return [
        _error(
            "use_differs",
            "/".join(use),
            f"kept as {kept.get(use, 0)} nano, its entries sum to {trail.uses.get(use, 0)}",
        )
        for use in sorted(kept.keys() | trail.uses.keys())
        if kept.get(use, 0) != trail.uses.get(use, 0)
    ]


async def _check_seal(session: AsyncSession) -> list[LedgerFinding]:
    """The stream `books` has one leaf for each entry, made of what the entry is now, and an unbroken chain.

    Why: it is what a signed checkpoint speaks of.
    """
    findings: list[LedgerFinding] = []
    prev, seq = seal.FIRST, 0
    frontier = Frontier()
    while page := await seal.leaves(session, "books", after_seq=seq, limit=_PAGE):
        chosen = select(col(Entry.seq), col(Entry.id), col(Entry.payload), col(Entry.recorded_at_us))
        chosen = chosen.where(col(Entry.seq).between(page[0].seq, page[-1].seq))
        rows = (await session.execute(chosen)).all()
        told = {row.seq: leaf_of(dict(row._mapping)) for row in rows if isinstance(row.payload, bytes)}
        for leaf in page:
            hashed = leaf_hash(leaf.payload)
            frontier.add(hashed)
            if told.get(leaf.seq) != leaf.payload:
                findings.append(
                    _error("seal_differs", f"books:{leaf.seq}", f"leaf {leaf.seq} is not what entry {leaf.seq} is")
                )
            if leaf.prev != prev or leaf.hash != seal.chained(leaf.prev, hashed):
                findings.append(
                    _error("chain_broken", f"books:{leaf.seq}", f"leaf {leaf.seq} does not follow the one before it")
                )
            prev, seq = leaf.hash, leaf.seq
    head = await seal.head(session, "books")
    newest = int((await session.execute(select(func.coalesce(func.max(col(Entry.seq)), 0)))).scalar_one())
    if (head.seq, head.hash, head.root) != (seq, prev, frontier.root().hex()) or seq != newest:
        findings.append(
            _error("seal_head_differs", "books", f"the head says leaf {head.seq}, there are {seq} of {newest} entries")
        )
    return findings


def _check_holds(holds: Iterable[Hold], ended_rentals: AbstractSet[str]) -> Iterator[LedgerFinding]:
    """Ended rentals hold no money, and nobody drew more than was set aside."""
    for hold in holds:
        if hold.resolved is None and hold.rental in ended_rentals:
            message = f"rental {hold.rental} has ended, {hold.remaining_nano} nano-USD are still held"
            yield _error("hold_left_open", hold.id, message)
        if hold.drawn_nano > hold.nano:
            message = f"{hold.drawn_nano} nano-USD accrued for rental {hold.rental}, {hold.nano} were set aside"
            yield LedgerFinding(code="hold_overdrawn", severity="warning", subject=hold.id, message=message)
