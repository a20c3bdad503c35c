"""The seal: append-only logs of exact bytes, each leaf chained to the one before it (contract C13).

There is one log a stream, `books` and `decisions`; what is written to one is hashed as it is and never re-serialised
(Formance repaired its hashes three times for that). A leaf's `hash` is SHA-256(prev ‖ leaf hash), both as bytes; the leaf
hash is RFC 6962's, and the stream's Merkle root is of all of them. Signed checkpoints (ledger/checkpoint.py) that lie
outside the database show whether somebody who owns the database changed it.

Sealed bytes hold our own ids, codes and hashes only: what a person typed lies in erasable tables.

`append` locks the stream's head until the transaction ends. Lock order: rows of your own, the ledger's head (by
`ledger.book.post`), then `decisions`. Two transactions that take them otherwise may wait for each other.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Literal

import msgspec
from sqlalchemy import insert, select, update
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from ledger.errors import LedgerError
from ledger.merkle import Frontier, leaf_hash
from ledger.tables import SealHead, SealLeaf

Stream = Literal["books", "decisions"]
STREAMS: tuple[Stream, ...] = ("books", "decisions")
FIRST = "0" * 64  # the `prev` of a stream's first leaf


class Sealed(msgspec.Struct, frozen=True, kw_only=True):
    """A leaf is the `seq`th of its stream (from 1); `prev` and `hash` are hex: the chain before and with it."""

    seq: int
    prev: str
    hash: str


class Leaf(msgspec.Struct, frozen=True, kw_only=True):
    """A leaf as it is stored."""

    seq: int
    payload: bytes
    prev: str
    hash: str


class Head(msgspec.Struct, frozen=True, kw_only=True):
    """How far a stream is: its number of leaves, the hash of the last, and its Merkle root (hex)."""

    stream: Stream
    seq: int
    hash: str
    root: str


async def append(session: AsyncSession, stream: Stream, payload: bytes) -> Sealed:
    """Add these exact bytes to the stream, in the caller's transaction. Raises LedgerError when the stream is unknown."""
    return (await append_many(session, stream, [payload]))[0]


async def append_many(session: AsyncSession, stream: Stream, payloads: Sequence[bytes]) -> list[Sealed]:
    """The same for several, in their order."""
    if not payloads:
        return []
    head = await _locked(session, stream)
    frontier = Frontier.decode(head.seq, head.peaks)
    seq, prev = head.seq, head.hash
    rows, sealed = [], []
    for payload in payloads:
        leaf = leaf_hash(payload)
        frontier.add(leaf)
        seq, now = seq + 1, chained(prev, leaf)
        rows.append({"stream": stream, "seq": seq, "payload": payload, "prev": prev, "hash": now})
        sealed.append(Sealed(seq=seq, prev=prev, hash=now))
        prev = now
    await session.execute(insert(SealLeaf), rows)
    await session.execute(
        update(SealHead)
        .where(col(SealHead.stream) == stream)
        .values(seq=seq, hash=prev, peaks=frontier.encode())
        .execution_options(synchronize_session=False)
    )
    return sealed


async def head(session: AsyncSession, stream: Stream) -> Head:
    """How far the stream is."""
    row = await _head(session, stream)
    root = Frontier.decode(row.seq, row.peaks).root().hex()
    return Head(stream=stream, seq=row.seq, hash=row.hash, root=root)


async def leaves(session: AsyncSession, stream: Stream, *, after_seq: int = 0, limit: int = 1000) -> list[Leaf]:
    """Leaves in their order, at most `limit`; the next page starts after the last one's `seq`."""
    chosen = (
        select(col(SealLeaf.seq), col(SealLeaf.payload), col(SealLeaf.prev), col(SealLeaf.hash))
        .where(col(SealLeaf.stream) == stream, col(SealLeaf.seq) > after_seq)
        .order_by(col(SealLeaf.seq))
        .limit(limit)
    )
    rows = (await session.execute(chosen)).all()
    return [Leaf(seq=seq, payload=payload, prev=prev, hash=hashed) for seq, payload, prev, hashed in rows]


def chained(prev: str, leaf: bytes) -> str:
    """The hash of a leaf whose predecessor's is `prev` (hex). Pure.

    >>> chained(FIRST, leaf_hash(b""))[:16]
    '1f54d6f92f46d67c'
    """
    return hashlib.sha256(bytes.fromhex(prev) + leaf).hexdigest()


class _Row(msgspec.Struct, frozen=True):
    seq: int
    hash: str
    peaks: bytes


async def _locked(session: AsyncSession, stream: Stream) -> _Row:
    return await _head(session, stream, lock=True)


async def _head(session: AsyncSession, stream: Stream, *, lock: bool = False) -> _Row:
    query = select(col(SealHead.seq), col(SealHead.hash), col(SealHead.peaks)).where(col(SealHead.stream) == stream)
    row = (await session.execute(query.with_for_update() if lock else query)).one_or_none()
    if row is None:
        raise LedgerError(
            f"stream {stream!r} has no head; one of {', '.join(STREAMS)} is meant, and migrations make them"
        )
    return _Row(*row)
