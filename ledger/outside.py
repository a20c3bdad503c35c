"""Checkpoints that are kept outside the database, held against what the database has now.

Triggers refuse changes of sealed leaves, and whoever owns the database can drop them and write every hash anew. What was
signed before, and lies where that person does not write, then does not fit any more.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field

from sqlalchemy.ext.asyncio import AsyncSession

from ledger import seal
from ledger.checkpoint import BadNote, Checkpoint, claimed
from ledger.merkle import Frontier, leaf_hash
from ledger.seal import FIRST, STREAMS, Head, Leaf, Stream, chained

PAGE = 2000
Begin = Callable[[], AbstractAsyncContextManager[AsyncSession]]


@dataclass(frozen=True, slots=True)
class Held:
    """A stream up to `seq`, hashed out of its stored bytes, and the notes (size, root, chain) that fitted it."""

    seq: int
    peaks: bytes
    chain: str
    notes: frozenset[tuple[int, str, str]]


@dataclass
class Trail:
    """How far the streams were hashed and held, in this process's memory, where nobody who owns the database writes.

    Going on from here hashes each leaf once: whoever rewrites leaves *and* the head meets a root that does not follow. A leaf
    that is changed under an unchanged head is found when the whole is hashed again, and by everybody with an export.
    """

    held: dict[Stream, Held] = field(default_factory=dict)


async def disagreements(begin: Begin, notes: Sequence[str], trail: Trail | None = None) -> list[str]:
    """What of the notes does not fit the streams, in words; also a head that is not the one of its leaves.

    Roots and chains are computed out of the stored bytes, not read. `begin` makes a transaction; each page of leaves is read
    in one of its own. Signatures are not looked at: the notes lie where only the broker writes. With a `trail` only what is
    new since is hashed, unless a note of before is new, and the trail goes on to here where nothing is wrong.
    """
    found: list[str] = []
    kept: dict[str, list[Checkpoint]] = defaultdict(list)
    for number, note in enumerate(notes, start=1):
        try:
            told = claimed(note)
        except BadNote as bad:
            found.append(f"note {number} cannot be read: {bad}")
            continue
        stream = told.origin.rpartition("/")[2]
        if stream not in STREAMS:
            found.append(f"note {number} is of {told.origin}, and there is no such stream")
        kept[stream].append(told)
    for stream in STREAMS:
        found += await _of_stream(begin, stream, kept[stream], trail)
    return found


async def _of_stream(begin: Begin, stream: Stream, notes: Sequence[Checkpoint], trail: Trail | None) -> list[str]:
    async with begin() as session:
        head = await seal.head(session, stream)
    walk = _begun(notes, None if trail is None else trail.held.get(stream), head.seq)
    while walk.seq < head.seq:
        async with begin() as session:
            page = await seal.leaves(session, stream, after_seq=walk.seq, limit=min(PAGE, head.seq - walk.seq))
        if not page:
            return [*walk.found, f"stream {stream} has {walk.seq} leaves, its head says {head.seq}"]
        await asyncio.to_thread(walk.on, page)
    found = [*walk.found, *walk.at_end(head)]
    if trail is not None:
        trail.held.pop(stream, None)
        if not found:
            trail.held[stream] = walk.held(notes)
    return found


def _begun(notes: Sequence[Checkpoint], held: Held | None, size: int) -> _Walk:
    """Where to go on from: the beginning, if the stream is shorter than it was, or a note of before was not there before."""
    if held is None or held.seq > size or any(each.size < held.seq and _key(each) not in held.notes for each in notes):
        return _Walk(notes)
    return _Walk([each for each in notes if each.size >= held.seq], held)


def _key(each: Checkpoint) -> tuple[int, str, str]:
    return each.size, each.root, each.chain


class _Walk:
    """A stream that is hashed anew, leaf by leaf."""

    def __init__(self, notes: Sequence[Checkpoint], held: Held | None = None) -> None:
        self.seq = 0 if held is None else held.seq
        self.found: list[str] = []
        self._frontier = Frontier() if held is None else Frontier.decode(held.seq, held.peaks)
        self._chain = FIRST if held is None else held.chain
        self._notes: dict[int, list[Checkpoint]] = defaultdict(list)
        for each in notes:
            self._notes[each.size].append(each)
        self._look()

    def on(self, page: Sequence[Leaf]) -> None:
        for leaf in page:
            hashed = leaf_hash(leaf.payload)
            self._frontier.add(hashed)
            self._chain = chained(self._chain, hashed)
            self.seq += 1
            self._look()

    def held(self, notes: Sequence[Checkpoint]) -> Held:
        return Held(self.seq, self._frontier.encode(), self._chain, frozenset(map(_key, notes)))

    def at_end(self, head: Head) -> list[str]:
        found = []
        if (head.root, head.hash) != (self._frontier.root().hex(), self._chain):
            found.append(f"the head of stream {head.stream} at {head.seq} is not that of its leaves")
        beyond = [each for size, notes in self._notes.items() if size > self.seq for each in notes]
        return found + [f"{_name(each)}: the stream ends at {self.seq}" for each in beyond]

    def _look(self) -> None:
        for each in self._notes.get(self.seq, ()):
            if (each.root, each.chain) != (self._frontier.root().hex(), self._chain):
                self.found.append(f"{_name(each)}: the leaves give another root")


def _name(each: Checkpoint) -> str:
    return f"checkpoint {each.origin} of size {each.size}"
