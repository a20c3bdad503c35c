"""The book: the one door through which events are posted, and what can be read back.

`post` is the only writer. It takes the head row first, so writers queue: what a rule has read cannot change before the
entry is sealed. Callers that lock rows of their own do so before they post, never after, so that no two wait in a ring.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import structlog
from sqlalchemy import ColumnElement, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col
from ulid import ULID

from ledger import seal
from ledger.errors import KeyReused, LedgerError
from ledger.event import Event, Exists, Posted, encode
from ledger.rules import check_event
from ledger.standing import in_parts, standing
from ledger.tables import Entry, Head, Posting

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

    Raises KeyReused (same key, other content), Unbalanced, UnknownAccount, UnknownUnit, MalformedEvent; for events that name
    a hold HoldUnknown, HoldResolved, and HoldExceeded when a project with a granted budget would go below zero; LotsExhausted
    when more of a unit is spent than was bought. Then nothing is written.
    """
    return (await post_many(session, [(event, recorded_at_us)]))[0]


async def post_many(session: AsyncSession, events: Sequence[tuple[Event, int]]) -> list[Posted | Exists]:
    """The same for several events, each with when it is recorded, in their order: all of them, or none when one is refused.

    Each is judged by what the ones before it leave. Many events cost few statements.
    """
    for event, _ in events:
        check_event(event)
    seq = await lock(session)
    known = await _known(session, [event.key for event, _ in events])
    fresh = [event for event, _ in events if event.key not in known]
    now = await standing(session, fresh)
    answers: list[Posted | Exists] = []
    rows: list[dict[str, Any]] = []
    for event, recorded_at_us in events:
        payload = encode(event)
        if event.key in known:
            answers.append(_existing(known[event.key], event, payload))
            continue
        now.admit(event)
        seq += 1
        period = now.period(event)
        now.follow(event, seq, period)
        row = _row(event, payload, seq=seq, recorded_at_us=recorded_at_us, period=period)
        rows.append(row)
        known[event.key] = _Known(id=row["id"], seq=seq, payload=payload)
        answers.append(Posted(entry_id=row["id"], seq=seq))
    if rows:
        await _write(session, rows, fresh)
        await now.write(session)
    return answers


async def _write(session: AsyncSession, rows: Sequence[dict[str, Any]], fresh: Sequence[Event]) -> None:
    """Entries unsealed, their postings, then sealed, and the leaves of the stream `books`: in that order, for the triggers."""
    events = {event.key: event for event in fresh}
    await session.execute(insert(Entry), rows)
    lines = [
        {"entry_id": row["id"], "line": number, "account": line.account, "unit": line.unit, "nano": line.nano}
        for row in rows
        for number, line in enumerate(events[row["key"]].lines)
    ]
    await session.execute(insert(Posting), lines)
    first, last = rows[0]["seq"], rows[-1]["seq"]
    await session.execute(
        update(Entry)
        .where(col(Entry.seq).between(first, last))
        .values(sealed=True)
        .execution_options(synchronize_session=False)
    )
    await session.execute(
        update(Head).where(col(Head.id) == 1).values(seq=last).execution_options(synchronize_session=False)
    )
    await seal.append_many(session, "books", [leaf_of(row) for row in rows])
    for row in rows:
        log.info(
            "ledger.posted", entry=row["id"], seq=row["seq"], key=row["key"], kind=row["kind"], project=row["project"]
        )


def leaf_of(row: Mapping[str, Any]) -> bytes:
    """What is sealed of an entry: one line of JSON with the event's bytes as they are stored. Frozen: hashes hang on it."""
    return b'{"entry_id":"%b","event":%b,"recorded_at_us":%d,"seq":%d}' % (
        row["id"].encode(),
        row["payload"],
        row["recorded_at_us"],
        row["seq"],
    )


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


class _Known(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    seq: int
    payload: bytes


async def _known(session: AsyncSession, keys: Sequence[str]) -> dict[str, _Known]:
    """Those of the keys that are in the books."""
    found: dict[str, _Known] = {}
    for some in in_parts(sorted(set(keys))):
        query = select(col(Entry.key), col(Entry.id), col(Entry.seq), col(Entry.payload)).where(
            col(Entry.key).in_(some)
        )
        for key, entry_id, seq, payload in (await session.execute(query)).all():
            found[key] = _Known(id=entry_id, seq=seq, payload=payload)
    return found


def _row(event: Event, payload: bytes, *, seq: int, recorded_at_us: int, period: str) -> dict[str, Any]:
    return {
        "id": entry_id_of(event.key, recorded_at_us),
        "seq": seq,
        "key": event.key,
        "kind": event.kind,
        "occurred_at_us": event.occurred_at_us,
        "recorded_at_us": recorded_at_us,
        "period": period,
        "actor": event.actor,
        **msgspec.structs.asdict(event.dims),
        "corrects": event.corrects,
        "hold": event.hold,
        "payload": payload,
        "sha256": hashlib.sha256(payload).hexdigest(),
        "sealed": False,
    }


def _existing(entry: _Known, event: Event, payload: bytes) -> Exists:
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
