"""Cutting and storing the broker's own parts of one batch. Objects only; committing is the caller's, in a transaction."""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import structlog

from broker.control.saving import Price
from jobs import own_parts
from jobs.answers import Known
from jobs.keys import name_of
from jobs.objects import ObjectStore
from jobs.own_parts import Kind, OwnPart, Saved, ShardName
from jobs.part_objects import AnswerError, AnswerLine, Damaged, InputSlice, PartLine, custom_ids, read_object
from jobs.types import InvalidLine

log = structlog.get_logger()
# Answers are copied out of parts of at most a few MiB, so neighbours are mostly found in the same one.
OBJECTS_IN_MEMORY = 4


class AnswerReader:
    """Answers out of part objects that were committed before, each object verified; the last few stay in memory."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._objects: OrderedDict[str, dict[int, PartLine]] = OrderedDict()

    async def read(self, known: Known) -> PartLine | None:
        """The completed line, or None: an object that is missing, damaged or another one is a miss, never an error."""
        if known.part_key not in self._objects:
            self._objects[known.part_key] = await self._object(known)
            if len(self._objects) > OBJECTS_IN_MEMORY:
                self._objects.popitem(last=False)
        self._objects.move_to_end(known.part_key)
        line = self._objects[known.part_key].get(known.idx)
        return line if line is not None and line.status == "completed" else None

    async def _object(self, known: Known) -> dict[int, PartLine]:
        try:
            lines = await read_object(self._store, known.part_key, known.part_sha256)
        except Damaged as damage:
            log.warning("answer.lost", part=known.part_key, reason=str(damage))
            return {}
        return {line.idx: line for line in lines}


@dataclass
class OwnPartMaker:
    """One batch's. A part is cut at `part_bytes` of answers, so that reading it back takes no more memory than others do."""

    store: ObjectStore
    input_key: str
    price: Price
    part_bytes: int
    reader: AnswerReader = field(init=False)

    def __post_init__(self) -> None:
        self.reader = AnswerReader(self.store)

    async def refuse(self, shard: ShardName, invalid: Iterable[InvalidLine]) -> list[OwnPart]:
        """Parts that fail these lines of the shard with what is wrong with them."""
        answers = [
            PartLine(
                line.idx, "failed", AnswerLine(line.custom_id, None, AnswerError(line.code, line.message, line.idx + 1))
            )
            for line in sorted(invalid, key=lambda line: line.idx)
        ]
        return await self._written(shard, "invalid", answers, {})

    async def copy(self, shard: ShardName, span: InputSlice, known: Mapping[int, Known]) -> list[OwnPart]:
        """Parts that answer these lines of the shard with known answers, under the lines' own custom_ids.

        Lines whose answer cannot be read any more are left out. Raises ObjectMissing or ObjectCorrupt when the input itself
        is damaged.
        """
        if not known:
            return []
        names = await custom_ids(self.store, self.input_key, span)
        answers = []
        for idx in sorted(known):
            found = await self.reader.read(known[idx])
            if found is not None:
                answers.append(PartLine(idx, "completed", AnswerLine(names[idx], found.line.response, None)))
        return await self._written(shard, "reused", answers, known)

    async def _written(
        self, shard: ShardName, kind: Kind, answers: list[PartLine], known: Mapping[int, Known]
    ) -> list[OwnPart]:
        parts = []
        while answers:
            count = self._count_that_fits(answers)
            now, answers = answers[:count], answers[count:]
            mine = [known[answer.idx] for answer in now if answer.idx in known]
            sources = sources_of(mine, shard.batch_id)
            part, content = await asyncio.to_thread(own_parts.cut, shard, now, kind, self._saved(mine), sources)
            await own_parts.store(self.store, part, content)
            parts.append(part)
        return parts

    def _count_that_fits(self, answers: list[PartLine]) -> int:
        size = 0
        for count, answer in enumerate(answers):
            size += 200 if answer.line.response is None else len(answer.line.response.body)
            if size > self.part_bytes:
                return max(1, count)
        return len(answers)

    def _saved(self, mine: Sequence[Known]) -> Saved:
        prompt, completion = sum(k.prompt_tokens for k in mine), sum(k.completion_tokens for k in mine)
        return Saved(input_tokens=prompt, output_tokens=completion, nano=self.price.of(prompt + completion))


def sources_of(answers: Iterable[Known], batch_id: str) -> tuple[tuple[str, int], ...]:
    """Which other batches' parts these answers lie in, each with how many lines. Pure."""
    owners = (name.owner for each in answers if (name := name_of(each.part_key)) is not None)
    return tuple(sorted(Counter(owner for owner in owners if owner != batch_id).items()))
