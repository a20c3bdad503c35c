"""What was decided for a batch can still be told when it has ended."""

from __future__ import annotations

from broker.control.plan import _assign
from broker.control.snapshot import Frozen
from broker.database import Database
from broker.tables import Assignment
from solver.types import Assignment as Share
from solver.types import Plan, Snapshot

SHARE = Share(work_id="batch_1", offer_key="offer", share_ppm=1_000_000, order=0, cost_nano=1, end_us=1)
PLAN = Plan(snapshot_sha256="0" * 64, stage="program", stopped_by="optimal", assignments=(SHARE,))
FROZEN = Frozen(Snapshot(now_us=1, works=(), offers=()), {})


async def test_a_batch_that_ends_while_the_plan_is_solved_keeps_its_explanation(database: Database) -> None:
    async with database.transaction() as session:
        await _assign(session, PLAN, FROZEN, {"batch_1"}, "plan_1", 1)
    async with database.transaction() as session:
        await _assign(session, PLAN, FROZEN, frozenset(), "plan_2", 2)
    async with database.transaction() as session:
        assert (await session.get_one(Assignment, ("batch_1", "offer"))).plan == "plan_1"
