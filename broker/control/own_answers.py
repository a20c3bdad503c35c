"""Which lines of a new batch the broker answers itself, and the parts that say so.

Three kinds: invalid lines (`skip_invalid`), requests that this project had answered before, and repeats of an earlier
line of the same file (`reuse`). The first two are answered before any worker starts; a repeat waits for its leader.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from broker.control.own_part_maker import OwnPartMaker
from broker.services import Services
from jobs import answers, duplicates, ids, ranges
from jobs.answers import Known
from jobs.batches import Remaining
from jobs.own_parts import OwnPart, ShardName
from jobs.tables import Batch
from jobs.types import InvalidLine, Reserved, ShardSpec, Validation

LOOK_UP_AT_ONCE = 20_000


@dataclass(frozen=True)
class Decided:
    """Line → what answers it: what is wrong with it, an answer that is known, or an earlier line."""

    invalid: Mapping[int, InvalidLine] = field(default_factory=dict)
    known: Mapping[int, Known] = field(default_factory=dict)
    follows: Mapping[int, int] = field(default_factory=dict)

    def known_answer(self, line: int) -> Known | None:
        """The known answer to this line, or to the one that it repeats."""
        return self.known.get(self.follows.get(line, line))


@dataclass(frozen=True)
class Prepared:
    """Own parts that are stored and not committed, and the lines that no worker is to be given."""

    parts: tuple[OwnPart, ...] = ()
    reserved: Reserved = field(default_factory=Reserved)


def decide(found: Validation) -> Decided:
    """What the file itself says: invalid lines and repeats. Pure."""
    return Decided(
        invalid={line.idx: line for line in found.invalid},
        follows={} if found.repeatable is None else duplicates.followers(found.repeatable),
    )


def left_for_workers(found: Validation, decided: Decided) -> Remaining:
    """What is to be computed. Tokens are each shard's, in proportion to the lines that are left of its requests. Pure."""
    invalid = ranges.from_lines(decided.invalid)
    closed = ranges.from_lines([*decided.invalid, *decided.known, *decided.follows])
    lines = input_tokens = output_tokens = input_bytes = 0
    for spec in found.shards:
        stop = spec.first_idx + spec.lines
        left = spec.lines - ranges.count(ranges.within(closed, spec.first_idx, stop))
        if left:
            requests = spec.lines - ranges.count(ranges.within(invalid, spec.first_idx, stop))
            lines += left
            input_tokens += -(-spec.input_tokens * left // requests)
            output_tokens += -(-spec.output_tokens * left // requests)
            input_bytes += -(-(spec.stop - spec.start) * left // spec.lines)
    return Remaining(lines=lines, input_tokens=input_tokens, output_tokens=output_tokens, input_bytes=input_bytes)


async def look_up(services: Services, batch: Batch, found: Validation, decided: Decided, revision: str) -> Decided:
    """`decided`, and which requests of the file the project has an answer to, by this model revision under this policy."""
    known: dict[int, Known] = {}
    for page in pages(requests_of(batch, found, revision, without=decided.follows)):
        async with services.database.transaction() as session:
            hits = await answers.known(session, batch.project, page.values())
        known |= {line: hits[name] for line, name in page.items() if name in hits}
    return replace(decided, known=known)


def requests_of(
    batch: Batch, found: Validation, revision: str, *, without: Mapping[int, int]
) -> Iterator[tuple[int, str]]:
    """Line and name of each request that may be answered from memory, or remembered. Pure."""
    if found.repeatable is None:
        return
    for position, line in enumerate(found.repeatable.idx):
        if line not in without:
            digest = found.repeatable.digest(position)
            yield line, answers.request_sha256(revision, batch.policy_hash, batch.endpoint, digest)


def pages(requests: Iterable[tuple[int, str]]) -> Iterator[dict[int, str]]:
    """So many at a time as one transaction asks for."""
    page: dict[int, str] = {}
    for line, name in requests:
        page[line] = name
        if len(page) == LOOK_UP_AT_ONCE:
            yield page
            page = {}
    if page:
        yield page


def shard_name(batch: Batch, spec: ShardSpec) -> ShardName:
    """The shard that `begin` will make of this."""
    return ShardName(
        project=batch.project,
        batch_id=batch.id,
        shard_id=ids.shard_id(batch.id, spec.index),
        first_idx=spec.first_idx,
        lines=spec.lines,
    )


async def prepare(maker: OwnPartMaker, batch: Batch, found: Validation, decided: Decided) -> Prepared:
    """Cut and store the parts for all that can be answered now. What cannot be read any more is run like any other line.

    Doing it again after a crash writes the same objects.
    """
    if not (decided.invalid or decided.known or decided.follows):
        return Prepared()
    parts: list[OwnPart] = []
    for spec in found.shards:
        shard, span = shard_name(batch, spec), range(spec.first_idx, spec.first_idx + spec.lines)
        parts += await maker.refuse(shard, [decided.invalid[line] for line in span if line in decided.invalid])
        parts += await maker.copy(shard, spec, {line: known for line in span if (known := decided.known_answer(line))})
    return Prepared(tuple(parts), await asyncio.to_thread(_reserved, parts, decided))


def _reserved(parts: Iterable[OwnPart], decided: Decided) -> Reserved:
    answered = ranges.normal(pair for part in parts for pair in part.lines)
    in_parts = set(ranges.lines_of(answered))
    follows = {line: leader for line, leader in decided.follows.items() if line not in in_parts}
    return Reserved(
        lines=ranges.union(answered, ranges.from_lines(follows)),
        follows=follows,
        invalid=ranges.from_lines(decided.invalid),
    )
