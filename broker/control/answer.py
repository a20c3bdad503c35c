"""The answer loop: repeats follow their leader, and own parts that were damaged are cut again.

A repeat whose leader completed gets the leader's response under its own custom_id; one whose leader failed is run like
any other line. The repeats of a shard are answered together, once the last of their leaders is done, so that a batch
does not end in thousands of tiny parts; a batch that is about to end is not kept waiting for that. Before a cancelled
batch is closed, the finaliser has what is ready answered.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import structlog
from sqlalchemy import select
from sqlmodel import col

from broker.control import saving
from broker.control.intake import validate_batch
from broker.control.own_answers import Decided, decide, look_up
from broker.control.own_part_maker import OwnPartMaker
from broker.control.saving import quoted_price
from broker.services import Services
from jobs import own_parts, ranges
from jobs.answered import AnsweredLines
from jobs.answers import Known
from jobs.clock import MICROSECONDS, db_now
from jobs.errors import JobsError
from jobs.own_parts import OwnPart, ShardName
from jobs.state import takes_answers
from jobs.tables import Batch, Shard
from jobs.types import Ranges

log = structlog.get_logger()
SHARDS_AT_ONCE = 50
# So long before a batch expires its repeats wait for nothing any more.
LAST_MINUTES_US = 120 * MICROSECONDS


@dataclass(frozen=True, slots=True)
class Led:
    """What becomes of a shard's repeats: `ready` ones are answered by what their leader said, the leaders of `failed` ones
    failed, and `waiting` ones wait on."""

    ready: Mapping[int, Known]
    failed: Ranges
    waiting: int

    def is_due(self, *, enough: int, is_closing: bool) -> bool:
        """Whether a part is to be cut now."""
        return bool(self.ready) and (is_closing or not self.waiting or len(self.ready) >= enough)


def led(follows: Mapping[int, int], leaders: Mapping[int, Known | None]) -> Led:
    """`leaders` are those that are answered: what they said, or None where they failed. Pure."""
    ready = {line: known for line, leader in follows.items() if (known := leaders.get(leader)) is not None}
    failed = [line for line, leader in follows.items() if leader in leaders and leaders[leader] is None]
    return Led(ready, ranges.from_lines(failed), len(follows) - len(ready) - len(failed))


@dataclass
class Answerer:
    services: Services

    async def step(self) -> None:
        for batch in await self._with_reserved_lines():
            try:
                await self._answer(batch)
            except (JobsError, OSError) as failure:
                # its lines stay reserved and are tried again; the batches behind it go on
                log.error("batch.answer_failed", batch=batch.id, error=f"{type(failure).__name__}: {failure}")

    async def settle(self, batch: Batch) -> bool:
        """Answer the repeats whose leader is done, before a cancelled batch is closed: they cost nothing and are there.

        False, and logged, when that failed; those not answered stay reserved.
        """
        try:
            await self._answer_repeats(batch)
        except (JobsError, OSError) as failure:
            log.error("batch.answer_failed", batch=batch.id, error=f"{type(failure).__name__}: {failure}")
            return False
        return True

    # --- repeats, and own parts that were damaged ---

    async def _with_reserved_lines(self) -> list[Batch]:
        waiting = select(col(Shard.batch_id)).where(col(Shard.reserved_lines) > 0).distinct()
        async with self.services.database.transaction() as session:
            rows = await session.scalars(select(Batch).where(col(Batch.id).in_(waiting)).order_by(col(Batch.id)))
            return [batch for batch in rows if takes_answers(batch.status, batch.ending)]

    async def _answer(self, batch: Batch) -> None:
        maker, again = await self._answer_repeats(batch)
        if again:
            await self._answer_again(batch, maker, again)

    async def _answer_repeats(self, batch: Batch) -> tuple[OwnPartMaker, list[tuple[ShardName, Shard]]]:
        """Also the shards with reserved lines that follow nothing."""
        async with self.services.database.transaction() as session:
            now_us = await db_now(session)
            price = await quoted_price(session, batch.id)
            withdrawn = await own_parts.withdrawn_parts(session, batch.id)
            answered = await AnsweredLines.of(session, batch.id)
        jobs = self.services.settings.jobs
        maker = OwnPartMaker(self.services.store, batch.input_key, price, jobs.part_bytes)
        is_closing = batch.status == "cancelling" or now_us >= batch.expires_us - LAST_MINUTES_US
        again: list[tuple[ShardName, Shard]] = []
        after = -1
        while page := await self._page(batch.id, after):
            after = page[-1].number
            async with self.services.database.transaction() as session:
                leaders = await answered.find(session, {line for shard in page for line in shard.follows.values()})
            for shard in page:
                name = _name(batch, shard, withdrawn.get(shard.id, 0))
                if shard.reserved_lines > len(shard.follows):
                    again.append((name, shard))
                found = led({int(line): leader for line, leader in shard.follows.items()}, leaders)
                if found.is_due(enough=jobs.part_lines, is_closing=is_closing):
                    await self._copy(batch, maker, name, shard, found.ready)
                await self._give(batch, shard, found.failed)
        return maker, again

    async def _page(self, batch_id: str, after: int) -> Sequence[Shard]:
        statement = (
            select(Shard)
            .where(col(Shard.batch_id) == batch_id, col(Shard.reserved_lines) > 0, col(Shard.number) > after)
            .order_by(col(Shard.number))
            .limit(SHARDS_AT_ONCE)
        )
        async with self.services.database.transaction() as session:
            return (await session.scalars(statement)).all()

    async def _copy(
        self, batch: Batch, maker: OwnPartMaker, name: ShardName, shard: Shard, known: Mapping[int, Known]
    ) -> None:
        """Answer these lines; those whose answer cannot be read are run."""
        parts = await maker.copy(name, shard, known)
        await self._commit(batch, parts)
        copied = ranges.normal(pair for part in parts for pair in part.lines)
        await self._give(batch, shard, ranges.difference(ranges.from_lines(known), copied))

    async def _commit(self, batch: Batch, parts: Sequence[OwnPart]) -> None:
        for part in parts:
            self.services.failpoints.reached("answer.before_txn")
            async with self.services.database.transaction() as session:
                await saving.commit(session, self.services.secret, batch.project, part)
            self.services.failpoints.reached("answer.after_txn")
        if parts:
            self.services.nudge("finalise")

    async def _give(self, batch: Batch, shard: Shard, lines: Ranges) -> None:
        if not lines:
            return
        async with self.services.database.transaction() as session:
            given = await own_parts.give_to_workers(session, batch.id, shard.id, lines)
        if given:
            self.services.nudge("plan")

    async def _answer_again(self, batch: Batch, maker: OwnPartMaker, shards: Sequence[tuple[ShardName, Shard]]) -> None:
        """Reserved lines that follow nothing: an own part of theirs was damaged. What they are is read from the input anew."""
        decided = await self._decide(batch)
        if decided is None:
            return
        for name, shard in shards:
            lines = ranges.difference(shard.reserved, ranges.from_lines(map(int, shard.follows)))
            mine = list(ranges.lines_of(lines))
            parts = await maker.refuse(name, [decided.invalid[line] for line in mine if line in decided.invalid])
            await self._commit(batch, parts)
            known = {line: found for line in mine if (found := decided.known_answer(line))}
            await self._copy(batch, maker, name, shard, known)
            follows = {line: decided.follows[line] for line in mine if line in decided.follows and line not in known}
            async with self.services.database.transaction() as session:
                await own_parts.follow(session, batch.id, shard.id, follows)
            rest = [line for line in mine if line not in decided.invalid and line not in known and line not in follows]
            await self._give(batch, shard, ranges.from_lines(rest))

    async def _decide(self, batch: Batch) -> Decided | None:
        found = await validate_batch(self.services, batch)
        if found.findings:
            # stricter limits than when it began; lines that may be no requests are given to nobody
            log.error("batch.input_refused", batch=batch.id, code=found.findings[0].code)
            return None
        decided = await asyncio.to_thread(decide, found)
        return await look_up(self.services, batch, found, decided, batch.revision) if batch.revision else decided


def _name(batch: Batch, shard: Shard, withdrawn: int) -> ShardName:
    return ShardName(
        project=batch.project,
        batch_id=batch.id,
        shard_id=shard.id,
        first_idx=shard.first_idx,
        lines=shard.lines,
        withdrawn=withdrawn,
    )
