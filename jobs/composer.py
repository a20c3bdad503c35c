"""Lines of output and error files out of verified parts, as streams: memory holds the parts of one shard at a time."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable

import msgspec
import structlog

from jobs import undone
from jobs.final_plan import FinalPart, FinalPlan, FinalShard
from jobs.objects import ObjectStore
from jobs.part_objects import (
    AnswerError,
    AnswerResponse,
    AskedIds,
    Damaged,
    PartLine,
    custom_ids,
    read_part,
)
from jobs.part_rows import PartRows

log = structlog.get_logger()

# In completion order the parts of all shards that were leased at the same time interleave; 16 kB are kept of each.
REMEMBERED_SHARDS = 512
UNDONE = {
    "expired": AnswerError("batch_expired", "This request could not be executed before the batch expired."),
    "cancelled": AnswerError("batch_cancelled", "This request was not executed because the batch was cancelled."),
}


class OutputLine(msgspec.Struct):
    """OpenAI's output line, in its order of fields."""

    id: str
    custom_id: str | None
    response: AnswerResponse | None
    error: AnswerError | None


class Composer:
    """Streams the lines of a plan, from the start whenever asked, and counts in `written` what the last stream of each
    kind held.

    Each stream raises Damaged at the first part that is not what was committed, or leaves such parts out
    (`skip_damaged`: the finaliser will withdraw them); ObjectMissing and ObjectCorrupt when the input is damaged; and
    BadTransition when parts of the plan were withdrawn meanwhile.
    """

    def __init__(self, store: ObjectStore, plan: FinalPlan, rows: PartRows, *, skip_damaged: bool = False) -> None:
        self._store = store
        self._plan = plan
        self._rows = rows
        self._skip_damaged = skip_damaged
        self._shards = {shard.number: shard for shard in plan.shards}
        self._asked: OrderedDict[int, AskedIds] = OrderedDict()
        self.written = {"completed": 0, "failed": 0, "undone": 0}

    async def output(self) -> AsyncIterator[bytes]:
        """Completed lines, as the plan orders them."""
        self.written["completed"] = 0
        async for lines in self._answers(lambda shard: shard.completed > 0, lambda part: part.lines != part.failed):
            completed = [line for line in lines if line.status == "completed"]
            self.written["completed"] += len(completed)
            yield b"".join(map(self._answer, completed))

    async def errors(self) -> AsyncIterator[bytes]:
        """Failed lines as the plan orders them, then the lines that the batch ended without answering."""
        self.written["failed"] = self.written["undone"] = 0
        async for lines in self._answers(lambda shard: shard.failed > 0, lambda part: bool(part.failed)):
            failed = [line for line in lines if line.status == "failed"]
            self.written["failed"] += len(failed)
            yield b"".join(map(self._answer, failed))
        if self._plan.ending is None:
            return
        for shard in self._plan.shards:
            if shard.undone:
                names = await undone.names(
                    self._store, self._plan.project, self._plan.batch_id, self._plan.input_key, shard
                )
                self.written["undone"] += len(names)
                yield b"".join(self._unanswered(idx, name) for idx, name in names.items())

    async def damaged(self) -> list[tuple[FinalPart, Damaged]]:
        """Every damaged part, with what is wrong with it."""
        found = []
        for shard in self._plan.shards:
            for part in await self._rows.of_shard(shard):
                try:
                    await read_part(self._store, part, await self._asked_of(shard))
                except Damaged as damage:
                    found.append((part, damage))
        return found

    async def _answers(
        self, wanted_shard: Callable[[FinalShard], bool], wanted: Callable[[FinalPart], bool]
    ) -> AsyncIterator[list[PartLine]]:
        """Verified lines of the parts that matter, in one list a shard (input order) or a part (completion order)."""
        if self._plan.line_order == "completion":
            async for part in self._rows.in_commit_order():
                if wanted(part):
                    yield await self._read(part)
            return
        for shard in filter(wanted_shard, self._plan.shards):
            lines: list[PartLine] = []
            for part in filter(wanted, await self._rows.of_shard(shard)):
                lines += await self._read(part)
            yield sorted(lines, key=lambda line: line.idx)

    async def _read(self, part: FinalPart) -> list[PartLine]:
        try:
            return await read_part(self._store, part, await self._asked_of(self._shards[part.shard_number]))
        except Damaged as damage:
            if not self._skip_damaged:
                raise
            facts = {"shard": part.shard_id, "epoch": part.epoch, "seq": part.seq, "placement": part.placement_id}
            log.error("part.damaged", batch=self._plan.batch_id, reason=str(damage), **facts)
            return []

    async def _asked_of(self, shard: FinalShard) -> AskedIds | None:
        if self._plan.is_published:
            return None
        if shard.number in self._asked:
            self._asked.move_to_end(shard.number)
        else:
            found = await custom_ids(self._store, self._plan.input_key, shard)
            self._asked[shard.number] = AskedIds.of(shard.first_idx, found)
            while len(self._asked) > REMEMBERED_SHARDS:
                self._asked.popitem(last=False)
        return self._asked[shard.number]

    def _answer(self, line: PartLine) -> bytes:
        return self._encoded(line.idx, line.line.custom_id, line.line.response, line.line.error)

    def _unanswered(self, idx: int, custom_id: str | None) -> bytes:
        return self._encoded(idx, custom_id, None, UNDONE[self._plan.ending or "cancelled"])

    def _encoded(
        self, idx: int, custom_id: str | None, response: AnswerResponse | None, error: AnswerError | None
    ) -> bytes:
        # The id is a function of batch and line: composing again gives the same bytes.
        name = hashlib.sha256(f"{self._plan.batch_id} {idx}".encode()).hexdigest()[:32]
        line = OutputLine(id=f"batch_req_{name}", custom_id=custom_id, response=response, error=error)
        return msgspec.json.encode(line) + b"\n"
