"""Doing again what a batch did not answer: which of its lines, and their bytes as the input of a new batch.

Lines keep their custom_ids and their bytes, so that the outputs of both batches can be put together.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Callable, Container
from typing import Literal

import msgspec

from jobs import ranges
from jobs.errors import BadTransition, InputGone, NothingToRetry, ObjectCorrupt, ObjectMissing
from jobs.final_plan import FinalPlan, FinalShard
from jobs.objects import ObjectStore
from jobs.part_rows import PartRows
from jobs.tables import Batch
from jobs.types import TERMINAL, Ranges

Which = Literal["all", "failed", "undone"]


class Again(msgspec.Struct, frozen=True, kw_only=True):
    """What of a batch is done again: lines that failed, lines that expired or were cancelled, and invalid ones, which are
    only done again when that is asked for."""

    which: Which
    with_invalid: bool
    failed: int
    undone: int
    invalid: int
    invalid_left_out: int

    @property
    def lines(self) -> int:
        return self.failed + self.undone + self.invalid


def again(batch: Batch, which: Which, *, with_invalid: bool) -> Again:
    """What would be done again of a batch that has ended. Pure.

    Raises BadTransition while it has not ended, and NothingToRetry when no such line is in it.
    """
    if batch.status not in TERMINAL:
        raise BadTransition(
            f"batch {batch.id} is {batch.status}; only a batch that has ended can be done again (cancel it first)",
            param="batch_id",
        )
    found = Again(
        which=which,
        with_invalid=with_invalid,
        failed=batch.failed - batch.invalid if which != "undone" else 0,
        undone=batch.expired + batch.cancelled if which != "failed" else 0,
        invalid=batch.invalid if with_invalid else 0,
        invalid_left_out=0 if with_invalid else batch.invalid,
    )
    if found.lines == 0:
        raise NothingToRetry(_nothing(batch, which), param="batch_id")
    return found


def _nothing(batch: Batch, which: Which) -> str:
    if batch.status == "failed":
        return f"batch {batch.id} was refused before any line ran; mend its input file and create a new batch of it"
    what = {"all": "failed, expired or was cancelled", "failed": "failed", "undone": "expired or was cancelled"}[which]
    refused = f"; {batch.invalid} were invalid (say `invalid: true` to try those again)" if batch.invalid else ""
    return f"no line of batch {batch.id} {what}: {batch.completed} of {batch.total} are completed{refused}"


async def input_again(store: ObjectStore, plan: FinalPlan, rows: PartRows, wanted: Again) -> AsyncIterator[bytes]:
    """The lines to do again as they were uploaded, in their order; one shard's rows in memory at a time.

    Raises InputGone when the input's object is not there any more, ObjectCorrupt when it is another one.
    """
    for shard in plan.shards:
        lines = await _lines_again(rows, shard, wanted)
        if not lines:
            continue
        digest, last = hashlib.sha256(), b"\n"
        chunks = store.stream(plan.input_key, shard.start, shard.stop)
        try:
            async for picked in _picked(chunks, shard.first_idx, set(ranges.lines_of(lines)), digest.update):
                if picked:
                    yield picked
                    last = picked
        except ObjectMissing as error:
            raise InputGone(f"the input of batch {plan.batch_id} is gone; upload the lines again") from error
        if digest.hexdigest() != shard.sha256:
            raise ObjectCorrupt(
                f"object {plan.input_key}: bytes [{shard.start}, {shard.stop}) are not what was validated"
            )
        if not last.endswith(b"\n"):
            yield b"\n"  # the last line of a file needs no newline; in the new file another one may follow


async def _lines_again(rows: PartRows, shard: FinalShard, wanted: Again) -> Ranges:
    found: Ranges = shard.undone if wanted.which != "failed" else ()
    for part in await rows.of_shard(shard) if shard.failed else ():
        # the broker's own parts fail nothing but invalid lines
        if wanted.with_invalid if part.is_own else wanted.which != "undone":
            found = ranges.union(found, part.failed)
    return found


async def _picked(
    chunks: AsyncIterator[bytes], first_idx: int, wanted: Container[int], seen: Callable[[bytes], object]
) -> AsyncIterator[bytes]:
    """Of each chunk what belongs to a wanted line, newlines included; a line may be longer than any chunk."""
    idx = first_idx
    async for chunk in chunks:
        seen(chunk)
        picked = []
        for piece in _pieces(chunk):
            if idx in wanted:
                picked.append(piece)
            if piece.endswith(b"\n"):
                idx += 1
        yield b"".join(picked)


def _pieces(chunk: bytes) -> list[bytes]:
    """The chunk cut behind each newline. (`splitlines` would cut at a carriage return, too.)"""
    *whole, rest = chunk.split(b"\n")
    return [*(line + b"\n" for line in whole), *([rest] if rest else [])]
