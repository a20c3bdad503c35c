"""Random schedules of workers that die, wake up late, and repeat themselves, against a model of seven lines, some of
which the broker answers itself.

The promise: whatever the order of leases, expiries, uploads, late and repeated commits, every line is answered exactly
once, no worker is given a reserved line, the counts are right, and the output holds the answer that was counted.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import select

from broker.database import Database
from jobs import commits, ids
from jobs.objects import ObjectStore
from jobs.own_parts import OwnPart
from jobs.tables import Part
from jobs.types import Commit, Lease
from tests.support.databases import Databases

LINES, SHARD_LINES = 7, 3
SHARDS = -(-LINES // SHARD_LINES)
PLACEMENTS = ("one", "two", "three")
COMMITTED = ("committed", "committed_superseded")


class Workers(RuleBasedStateMachine):
    """Workers of one batch. `trusts_answers` False leaves the predicted outcomes out and only looks at what counted."""

    room_class: type[Any]
    databases: Databases
    trusts_answers = True

    leases = Bundle("leases")
    parts = Bundle("parts")
    own_parts = Bundle("own_parts")

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.folder = Path(tempfile.mkdtemp())
        self.url = self.databases.migrated()
        self.room = self.room_class(Database(self.url), ObjectStore.local(self.folder))
        self.answered: dict[int, tuple[str, int]] = {}  # line → (nonce, seq) of the part that counts
        self.decided: dict[tuple[str, int, int], str] = {}
        self.reserved: set[int] = set()
        self.own_decided: set[OwnPart] = set()
        self.newest: dict[str, int] = {}
        self.running: set[str] = set()
        self.is_sound = False

    def run(self, coroutine: Any) -> Any:
        return self.runner.run(coroutine)

    @initialize(reserved=st.sets(st.integers(0, LINES - 1), max_size=4))
    def submit(self, reserved: set[int]) -> None:
        self.batch_id = self.run(self.room.batch(LINES, shard_lines=SHARD_LINES, reserved=reserved))
        self.reserved = set(reserved)

    # --- what workers do ---

    @rule(target=leases, placement=st.sampled_from(PLACEMENTS))
    def take(self, placement: str) -> Any:
        lease = self.run(self.room.try_lease(self.batch_id, placement))
        if lease is None:
            return multiple()
        assert lease.epoch == self.newest.get(lease.shard_id, 0) + 1, "each lease has an epoch of its own"
        lines = set(range(lease.first_idx, lease.first_idx + lease.lines))
        closed = lines & (self.reserved | set(self.answered))
        assert {n for start, stop in lease.done for n in range(start, stop)} == closed
        assert closed != lines, "a lease without work"
        self.newest[lease.shard_id] = lease.epoch
        self.running.add(lease.shard_id)
        return (lease, placement)

    @rule(target=parts, held=leases, chosen=st.sets(st.integers(0, SHARD_LINES - 1), min_size=1))
    def store(self, held: tuple[Lease, str], chosen: set[int]) -> Any:
        """The part is stored; its commit may come now, much later, twice, or never."""
        return self.uploaded(held, chosen) or multiple()

    def uploaded(self, held: tuple[Lease, str], chosen: set[int]) -> tuple[Commit, str] | None:
        lease, placement = held
        numbers = sorted(lease.first_idx + n for n in chosen if n < lease.lines)
        if not numbers:
            return None
        return (self.run(self.room.part(lease, numbers)), placement)

    @rule(held=leases, chosen=st.sets(st.integers(0, SHARD_LINES - 1), min_size=1))
    def answer(self, held: tuple[Lease, str], chosen: set[int]) -> None:
        """The part is stored and committed at once."""
        uploaded = self.uploaded(held, chosen)
        if uploaded is not None:
            self.commit(uploaded)

    @rule(sent=parts)
    def send(self, sent: tuple[Commit, str]) -> None:
        self.commit(sent)

    def commit(self, sent: tuple[Commit, str]) -> None:
        asked, placement = sent
        expected = self.expected(asked)
        answer = self.run(self.room.send(asked, placement))
        if self.trusts_answers:
            assert answer.outcome in expected
        if answer.outcome in (*COMMITTED, "rejected_overlap"):
            self.decided[asked.shard_id, asked.epoch, asked.seq] = answer.outcome
        if answer.outcome in COMMITTED:
            for start, stop in asked.lines:
                self.answered |= dict.fromkeys(range(start, stop), (asked.nonce, asked.seq))
            if answer.shard_done:
                self.running.discard(asked.shard_id)

    def expected(self, asked: Commit) -> tuple[str, ...]:
        if (asked.shard_id, asked.epoch, asked.seq) in self.decided:
            return ("replayed",)
        if len(self.answered) == LINES:
            return ("rejected_terminal",)
        closed = self.reserved | set(self.answered)
        if any(n in closed for start, stop in asked.lines for n in range(start, stop)):
            return ("rejected_overlap",)
        if asked.epoch == self.newest[asked.shard_id] and asked.shard_id in self.running:
            return ("committed",)
        return ("committed_superseded",)

    @rule(held=leases)
    def renew(self, held: tuple[Lease, str]) -> None:
        lease, placement = held
        is_kept = self.run(self.room.renew(lease, placement, in_flight=[lease.first_idx]))
        is_newest = lease.epoch == self.newest[lease.shard_id]
        assert is_kept == (is_newest and lease.shard_id in self.running)

    # --- what the broker does itself ---

    @rule(target=own_parts, number=st.integers(0, SHARDS - 1), chosen=st.sets(st.integers(0, SHARD_LINES - 1)))
    def cut_own(self, number: int, chosen: set[int]) -> Any:
        """An own part is stored, after which the broker may crash, and commit it or a repeat of it much later."""
        lines = sorted(n for n in (number * SHARD_LINES + c for c in chosen) if n in self.reserved)
        return self.run(self.room.own_part(self.batch_id, number, lines)) if lines else multiple()

    @rule(part=own_parts)
    def commit_own(self, part: OwnPart) -> None:
        lines = {n for start, stop in part.lines for n in range(start, stop)}
        outcome = self.run(self.room.own_commit(part))
        if part in self.own_decided:
            assert outcome == "replayed"
        elif len(self.answered) == LINES:
            assert outcome in ("rejected_terminal", "rejected_conflict")
        elif lines & set(self.answered):
            assert outcome in ("rejected_overlap", "rejected_conflict")
        else:
            assert outcome == "committed"
            self.own_decided.add(part)
            self.answered |= dict.fromkeys(lines, ("broker", 0))
            self.reserved -= lines

    @rule(number=st.integers(0, SHARDS - 1), chosen=st.sets(st.integers(0, SHARD_LINES - 1)))
    def give_to_workers(self, number: int, chosen: set[int]) -> None:
        lines = {number * SHARD_LINES + c for c in chosen} & self.reserved
        given = self.run(self.room.give_to_workers(self.batch_id, number, lines))
        assert given == (ids.shard_id(self.batch_id, number) not in self.running)
        self.reserved -= lines if given else set()

    # --- what happens to them ---

    @rule(placement=st.sampled_from(PLACEMENTS))
    def die(self, placement: str) -> None:
        held = self.held_by(placement)
        assert self.run(self.room.abandon(placement)) == len(held)
        self.running -= held

    def held_by(self, placement: str) -> set[str]:
        async def held() -> set[str]:
            shards = [await self.room.shard(shard_id) for shard_id in self.running]
            return {shard.id for shard in shards if shard.placement_id == placement}

        found: set[str] = self.run(held())
        return found

    @rule(seconds=st.sampled_from((10, 61)))
    def time_passes(self, seconds: int) -> None:
        self.room.clock(seconds)

    # --- what must hold after each step ---

    @invariant()
    @precondition(lambda self: hasattr(self, "batch_id"))
    def each_line_counts_at_most_once(self) -> None:
        self.is_sound = False
        counted = Counter(self.run(self.counted()))
        assert not [n for n, times in counted.items() if times > 1], f"counted more than once: {counted}"
        assert set(counted) == set(self.answered)
        self.is_sound = True

    async def counted(self) -> list[int]:
        async with self.room.database.transaction() as session:
            rows = await session.scalars(select(Part).where(Part.counted))
            return [n for row in rows for start, stop in row.lines for n in range(start, stop)]

    def teardown(self) -> None:
        try:
            if self.is_sound:
                self.run(self.complete())
        finally:
            self.run(self.room.database.close())
            self.runner.close()
            shutil.rmtree(self.folder)

    async def complete(self) -> None:
        """No line is lost: the broker and one more worker finish what is left, and the output is whole."""
        self.room.clock(61)
        for number in range(SHARDS):
            lines = sorted(n for n in self.reserved if n // SHARD_LINES == number)
            if lines:
                assert await self.room.own_commit(await self.room.own_part(self.batch_id, number, lines)) == "committed"
        await self.room.answer_all(self.batch_id)
        batch = await self.room.finalise(self.batch_id)
        assert (batch.status, batch.completed, batch.failed) == ("completed", LINES, 0)
        output = await self.room.read(batch.output_file_id)
        assert [line["custom_id"] for line in output] == [f"id-{n}" for n in range(LINES)]
        for n, (nonce, seq) in self.answered.items():
            expected = f"broker-{n}" if nonce == "broker" else f"{nonce}-{seq}-{n}"
            assert output[n]["response"]["request_id"] == expected


def machine(room: Any, databases: Databases, *, trusts_answers: bool = True) -> type[Workers]:
    """The machine over fresh copies of a migrated database."""
    facts = {"room_class": type(room), "databases": databases, "trusts_answers": trusts_answers}
    return type("TheseWorkers", (Workers,), facts)


def run(workers: type[RuleBasedStateMachine], **changes: Any) -> None:
    run_state_machine_as_test(
        workers,
        settings=settings(
            stateful_step_count=25, deadline=None, database=None, suppress_health_check=list(HealthCheck), **changes
        ),
    )


def test_no_line_is_lost_and_none_counts_twice(room: Any, databases: Databases) -> None:
    run(machine(room, databases), max_examples=20)


def test_without_fence_and_overlap_checks_the_schedules_find_a_line_that_counts_twice(
    room: Any, databases: Databases, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The schedules above are worth something: they find the duplicate when the two checks are taken out."""
    monkeypatch.setattr(commits, "fence_problem", lambda situation, asked: None)
    monkeypatch.setattr(commits, "overlap_problem", lambda situation, asked: None)
    with pytest.raises(AssertionError, match="counted more than once"):
        run(
            machine(room, databases, trusts_answers=False),
            max_examples=300,
            derandomize=True,
            phases=[Phase.generate],
            report_multiple_bugs=False,
        )
