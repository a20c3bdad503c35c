"""Commits that come at the same time are decided in one transaction: what it costs by itself, fifteen round trips to the
database, is as much for a hundred of them as for one, and those of a batch would wait for its row anyway.

Each has an answer of its own (jobs/commits.py). A transaction that fails takes nobody with it: its commits are tried again
in halves, and one that was written after all is a replay then. When the database is away, all hear that, and ask again.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Collection, Sequence
from zlib import crc32

from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from broker.measurements import Machine, machine_of, measured_work, work_of
from broker.request_times import paced_work
from broker.services import Services
from broker.tables import Worker
from broker.together import Together
from jobs import commits
from jobs.clock import db_now
from jobs.commits import Asked
from jobs.types import CommitAnswer
from markets.tables import RentalRow

MOST_TOGETHER = 100
# Transactions at a time. A batch is always in the same, so that they never wait for each other.
LANES = 2
_KNOWN_MACHINES = 10_000


class CommitGroups:
    """Of one broker. What a rental is (model, precision, hardware) is frozen with it, and read once."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._lanes = [Together(self._decide, most=MOST_TOGETHER) for _ in range(LANES)]
        self._machines: OrderedDict[str, Machine] = OrderedDict()

    async def commit(self, asked: Asked) -> CommitAnswer:
        """What becomes of a commit. Raises LeaseUnknown when the shard is not the batch's, BatchNotFound."""
        return await self._lanes[crc32(asked.batch_id.encode()) % LANES](asked)

    async def _decide(self, asked: Sequence[Asked]) -> list[CommitAnswer | Exception]:
        services = self._services
        async with services.database.transaction() as session:
            answers = await commits.commit_together(session, asked)
            counted = [
                each
                for each, answer in zip(asked, answers, strict=True)
                if answer.outcome in ("committed", "committed_superseded")
            ]
            if counted:
                await self._note(session, counted)
            services.failpoints.reached("commit.in_txn")
        services.failpoints.reached("commit.before_ack")
        if any(answer.shard_done for answer in answers):
            services.nudge("finalise")
            services.nudge("answer")
        return [*answers]

    async def _note(self, session: AsyncSession, counted: Sequence[Asked]) -> None:
        """When these workers last brought something, and how fast they are."""
        workers = {each.placement_id for each in counted}
        # the rows are locked by id, as by everybody who locks several; a bare UPDATE takes them as it finds them. One that is
        # locked is left out: it is a worker that leases just now, maybe waiting for others, and a lane of commits with it
        in_order = select(col(Worker.rental)).where(col(Worker.rental).in_(workers)).order_by(col(Worker.rental))
        await session.execute(
            update(Worker)
            .where(col(Worker.rental).in_(in_order.with_for_update(skip_locked=True)))
            .values(work_us=await db_now(session))
            .execution_options(synchronize_session=False)
        )
        machines = await self._machines_of(session, workers)
        done: dict[Machine, Counter[str]] = {}
        for each in counted:
            machine, counters = machines[each.placement_id], each.commit.counters
            slowed = await paced_work(session, each.batch_id, each.placement_id, machine, counters)
            done.setdefault(machine, Counter()).update(work_of(each.commit.usage, counters, slowed))
        await measured_work(session, done)

    async def _machines_of(self, session: AsyncSession, rentals: Collection[str]) -> dict[str, Machine]:
        unknown = [rental for rental in rentals if rental not in self._machines]
        if unknown:
            columns = (col(RentalRow.id), col(RentalRow.model), col(RentalRow.precision), col(RentalRow.facts))
            for row in await session.execute(select(*columns).where(col(RentalRow.id).in_(unknown))):
                self._machines[row[0]] = machine_of(row[1], row[2], row[3])
        found = {rental: self._machines[rental] for rental in rentals}
        while len(self._machines) > _KNOWN_MACHINES:
            self._machines.popitem(last=False)
        return found
