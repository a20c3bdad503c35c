"""The book: the one door through which events are posted, and what can be read back.

`post` is the only writer. It takes the head row first, so writers queue: what a rule has read cannot change before the
entry is sealed. Callers that lock rows of their own do so before they post, never after, so that no two wait in a ring.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict

import msgspec
import structlog
from sqlalchemy import ColumnElement, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col
from ulid import ULID

from ledger import accounts, positions
from ledger.errors import HoldExceeded, HoldResolved, HoldUnknown, KeyReused, LedgerError, MalformedEvent
from ledger.event import Event, Exists, Posted, encode
from ledger.money import in_usd
from ledger.positions import RESOLUTIONS, Hold
from ledger.rules import HOLD_KINDS, check_event, period_of
from ledger.tables import Entry, Head, HoldState, Posting

log = structlog.get_logger("ledger")


class Recorded(msgspec.Struct, frozen=True, kw_only=True):
    """An entry as it stands in the books: the event, decoded from the stored bytes, and where it stands.

    `sha256` is the hex digest of the stored bytes.
    """

    entry_id: str
    seq: int
    recorded_at_us: int
    period: str
    sha256: str
    event: Event


class Balance(msgspec.Struct, frozen=True, kw_only=True):
    """The sum of an account's postings: debits positive, credits negative."""

    account: str
    unit: str
    nano: int


async def lock(session: AsyncSession) -> int:
    """Take the books for writing until the transaction ends; the number of the newest entry.

    Whoever decides by what the books say (holds, accrual) locks before reading. Raises LedgerError when the head row is
    missing: the database was not migrated.
    """
    head = select(col(Head.seq)).where(col(Head.id) == 1).with_for_update()
    seq = (await session.execute(head)).scalar_one_or_none()
    if seq is None:
        raise LedgerError("ledger_head has no row: run the migrations (they run ledger.triggers.create_statements)")
    return seq


async def post(session: AsyncSession, event: Event, *, recorded_at_us: int) -> Posted | Exists:
    """Write `event` to the books, once: the same event again answers Exists and writes nothing.

    Raises KeyReused (same key, other content), Unbalanced, UnknownAccount, MalformedEvent; for events that name a
    hold HoldUnknown, HoldResolved, and HoldExceeded when a project with a granted budget would go below zero. Then nothing
    is written.
    """
    check_event(event)
    payload = encode(event)
    newest = await lock(session)
    existing = (await session.execute(select(Entry).where(col(Entry.key) == event.key))).scalar_one_or_none()
    if existing is not None:
        return _existing(existing, event, payload)
    hold = await _admit(session, event)
    entry_id, seq = entry_id_of(event.key, recorded_at_us), newest + 1
    row = _row(event, payload, seq=seq, recorded_at_us=recorded_at_us)
    await session.execute(insert(Entry).values(**row))
    lines = [
        {"entry_id": entry_id, "line": number, "account": line.account, "unit": line.unit, "nano": line.nano}
        for number, line in enumerate(event.lines)
    ]
    await session.execute(insert(Posting), lines)
    await session.execute(update(Entry).where(col(Entry.id) == entry_id).values(sealed=True))
    await session.execute(update(Head).where(col(Head.id) == 1).values(seq=seq))
    await _keep_hold(session, event, hold, seq)
    log.info("ledger.posted", entry=entry_id, seq=seq, key=event.key, kind=event.kind, project=event.dims.project)
    return Posted(entry_id=entry_id, seq=seq)


async def entries(
    session: AsyncSession,
    *,
    project: str | None = None,
    batch: str | None = None,
    rental: str | None = None,
    kind: str | None = None,
    after_seq: int = 0,
    limit: int = 1000,
) -> list[Recorded]:
    """Entries in the order of the books, at most `limit`; the next page starts after the last one's `seq`."""
    chosen = (
        select(Entry)
        .where(col(Entry.seq) > after_seq, *selection(project=project, batch=batch, rental=rental, kind=kind))
        .order_by(col(Entry.seq))
        .limit(limit)
    )
    return [recorded(entry) for entry in (await session.execute(chosen)).scalars()]


async def find(session: AsyncSession, key: str) -> Recorded | None:
    """The entry with this event key, or None."""
    entry = (await session.execute(select(Entry).where(col(Entry.key) == key))).scalar_one_or_none()
    return None if entry is None else recorded(entry)


async def balances(
    session: AsyncSession, *, project: str | None = None, batch: str | None = None, rental: str | None = None
) -> list[Balance]:
    """Per account and unit, over the entries of the given dimensions, by account name. Zero balances are listed too."""
    sums = (
        select(col(Posting.account), col(Posting.unit), func.sum(col(Posting.nano)))
        .join(Entry, col(Entry.id) == col(Posting.entry_id))
        .where(*selection(project=project, batch=batch, rental=rental))
        .group_by(col(Posting.account), col(Posting.unit))
        .order_by(col(Posting.account), col(Posting.unit))
    )
    rows = (await session.execute(sums)).all()
    return [Balance(account=account, unit=unit, nano=int(nano)) for account, unit, nano in rows]


def selection(
    *, project: str | None = None, batch: str | None = None, rental: str | None = None, kind: str | None = None
) -> Sequence[ColumnElement[bool]]:
    """Conditions on Entry; what is None is not asked for."""
    wanted = ((Entry.project, project), (Entry.batch, batch), (Entry.rental, rental), (Entry.kind, kind))
    return [col(column) == value for column, value in wanted if value is not None]


def recorded(entry: Entry) -> Recorded:
    """The value of a row. The event is decoded from the stored bytes, which are the truth; columns only repeat it."""
    return Recorded(
        entry_id=entry.id,
        seq=entry.seq,
        recorded_at_us=entry.recorded_at_us,
        period=entry.period,
        sha256=entry.sha256,
        event=msgspec.json.decode(entry.payload, type=Event),
    )


def entry_id_of(key: str, recorded_at_us: int) -> str:
    """`entry_` and a ULID of the time of recording and 80 bits of the key's sha256.

    Not random: replaying the same events at the same recorded times gives the same ledger, byte for byte.
    """
    milliseconds = (recorded_at_us // 1000).to_bytes(6, "big")
    return f"entry_{ULID.from_bytes(milliseconds + hashlib.sha256(key.encode()).digest()[:10])}"


def _row(event: Event, payload: bytes, *, seq: int, recorded_at_us: int) -> dict[str, object]:
    return {
        "id": entry_id_of(event.key, recorded_at_us),
        "seq": seq,
        "key": event.key,
        "kind": event.kind,
        "occurred_at_us": event.occurred_at_us,
        "recorded_at_us": recorded_at_us,
        "period": period_of(event.occurred_at_us),
        "actor": event.actor,
        **msgspec.structs.asdict(event.dims),
        "corrects": event.corrects,
        "hold": event.hold,
        "payload": payload,
        "sha256": hashlib.sha256(payload).hexdigest(),
        "sealed": False,
    }


def _existing(entry: Entry, event: Event, payload: bytes) -> Exists:
    if entry.payload == payload:
        return Exists(entry_id=entry.id, seq=entry.seq)
    before = msgspec.json.decode(entry.payload, type=Event)
    differing = [field for field in event.__struct_fields__ if getattr(before, field) != getattr(event, field)]
    raise KeyReused(
        f"event key {event.key!r} is entry {entry.seq} already, with other {', '.join(differing)} "
        f"({_fields(before, differing)} there, {_fields(event, differing)} now); give the new event a key of its own"
    )


def _fields(event: Event, names: Sequence[str]) -> str:
    return msgspec.json.encode({name: getattr(event, name) for name in names}).decode()


async def _keep_hold(session: AsyncSession, event: Event, before: Hold | None, seq: int) -> None:
    if event.kind == "hold.open":
        await session.execute(insert(HoldState).values(**asdict(positions.opened(event, seq))))
    elif before is not None:
        after = positions.moved(before, event)
        await session.execute(update(HoldState).where(col(HoldState.id) == before.id).values(**asdict(after)))


async def _admit(session: AsyncSession, event: Event) -> Hold | None:
    """What the books must say for this event to be posted; the hold that it names, as it stands now.

    One path for every caller, replays included.
    """
    if event.corrects is not None and await find(session, event.corrects) is None:
        raise MalformedEvent(f"event {event.key!r} corrects {event.corrects!r}, which is not in the books")
    if event.hold is None:
        return None
    hold = await positions.hold(session, event.hold)
    if event.kind == "hold.open":
        _admit_opening(event, hold)
    else:
        _admit_change(event, hold)
    if event.kind in HOLD_KINDS:
        await _admit_budget(session, event)
    return hold


def _admit_opening(event: Event, hold: Hold | None) -> None:
    if hold is not None:
        raise KeyReused(
            f"event {event.key!r}: hold {hold.id} was opened by entry {hold.opened_seq}; extend it or use a new id"
        )


def _admit_change(event: Event, hold: Hold | None) -> None:
    if hold is None:
        raise HoldUnknown(f"event {event.key!r}: hold {event.hold!r} was never opened")
    if hold.resolved is not None:
        raise HoldResolved(
            f"event {event.key!r}: hold {hold.id} was resolved before ({hold.resolved}); open a new hold"
        )
    if hold.project != event.dims.project:
        raise MalformedEvent(
            f"event {event.key!r}: hold {hold.id} is of project {hold.project}, not {event.dims.project}"
        )
    given_back = -sum(line.nano for line in event.lines if line.account == accounts.held(hold.project))
    if event.kind in RESOLUTIONS and given_back != hold.remaining_nano:
        raise MalformedEvent(
            f"event {event.key!r}: gives back {given_back} of the {hold.remaining_nano} nano left in hold {hold.id}"
        )


async def _admit_budget(session: AsyncSession, event: Event) -> None:
    project = event.dims.project or ""
    taken = -sum(line.nano for line in event.lines if line.account == accounts.budget(project))
    if taken <= 0:
        return
    left = await positions.remaining(session, project)
    if left is not None and taken > left:
        log.warning("ledger.hold_refused", hold=event.hold, project=project, asked_nano=taken, remaining_nano=left)
        raise HoldExceeded(
            f"hold {event.hold} asks for {in_usd(taken)}, project {project} has {in_usd(left)} left of its budget; "
            "grant more, ask for less, or wait until other holds are resolved"
        )
