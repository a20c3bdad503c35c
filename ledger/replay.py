"""Replay: books out of a file of events (contract C6), so that anyone can check them with a case of their own.

A line is an event, or a leaf of the stream `books` as an export has it: then the entry is recorded at the same time, and the
same file gives the same ledger, byte for byte. A bare event counts as recorded when it occurred.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractAsyncContextManager
from itertools import islice

import msgspec
from sqlalchemy.ext.asyncio import AsyncSession

from ledger.book import post, post_many
from ledger.errors import LedgerError
from ledger.event import Event, Exists, Posted
from ledger.verify import LeafOfBooks

AT_ONCE = 500
Begin = Callable[[], AbstractAsyncContextManager[AsyncSession]]


class BadLine(msgspec.Struct, frozen=True, kw_only=True):
    """Line `line` (from 1) was not posted: `code` and what to mend."""

    line: int
    code: str
    message: str


class Replayed(msgspec.Struct, frozen=True, kw_only=True):
    """What became of the lines: posted, in the books already, refused."""

    posted: int
    repeated: int
    refused: tuple[BadLine, ...]


def schema() -> dict[str, object]:
    """The JSON Schema of a line that is an event."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "An event of broker's ledger: a line of EVENTS.jsonl",
        **msgspec.json.schema(Event),
    }


async def replay(begin: Begin, lines: Iterable[bytes]) -> Replayed:
    """Post the lines in their order; a line that is refused is named, and the others go on. `begin` makes a transaction."""
    refused: list[BadLine] = []
    posted = repeated = 0
    decoded = _decoded(lines, refused)
    while page := list(islice(decoded, AT_ONCE)):
        try:
            async with begin() as session:
                answers = await post_many(session, [(event, recorded) for _, event, recorded in page])
        except LedgerError:
            # one of them is refused, and so nothing was written: now one by one, to name it
            answers = await _singly(begin, page, refused)
        done = sum(isinstance(answer, Posted) for answer in answers)
        posted, repeated = posted + done, repeated + len(answers) - done
    return Replayed(posted=posted, repeated=repeated, refused=tuple(sorted(refused, key=lambda each: each.line)))


async def _singly(
    begin: Begin, page: Iterable[tuple[int, Event, int]], refused: list[BadLine]
) -> list[Posted | Exists]:
    answers: list[Posted | Exists] = []
    for number, event, recorded in page:
        try:
            async with begin() as session:
                answers.append(await post(session, event, recorded_at_us=recorded))
        except LedgerError as problem:
            refused.append(BadLine(line=number, code=problem.code, message=str(problem)))
    return answers


def _decoded(lines: Iterable[bytes], refused: list[BadLine]) -> Iterator[tuple[int, Event, int]]:
    event_of, leaf_of = msgspec.json.Decoder(Event), msgspec.json.Decoder(LeafOfBooks)
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            if line.startswith(b'{"entry_id":'):
                leaf = leaf_of.decode(line)
                yield number, leaf.event, leaf.recorded_at_us
            else:
                event = event_of.decode(line)
                yield number, event, event.occurred_at_us
        except (msgspec.DecodeError, UnicodeDecodeError) as damage:
            refused.append(BadLine(line=number, code="malformed_event", message=str(damage)))
