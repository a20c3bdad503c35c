"""The commit protocol: what makes an answer count, and what never makes it count twice."""

from __future__ import annotations

import asyncio
import hashlib
from typing import Any

import msgspec
import pytest
from sqlalchemy import select

from jobs import commits
from jobs.errors import LeaseUnknown
from jobs.keys import part_key
from jobs.tables import OutboxEvent, Part
from jobs.types import Commit, LineUsage


async def counted(room: Any, batch_id: str) -> list[int]:
    """Every answered line by the part rows, ascending; a line that counts twice is in it twice."""
    async with room.database.transaction() as session:
        parts = await session.scalars(select(Part).where(Part.batch_id == batch_id, Part.counted))
        return sorted(n for part in parts for start, stop in part.lines for n in range(start, stop))


async def test_a_commit_counts_its_lines_and_their_tokens(room: Any) -> None:
    batch_id = await room.batch(6)
    lease = await room.lease(batch_id)
    answer = await room.commit(lease, [0, 2], failed=[2])
    assert (answer.outcome, answer.done, answer.shard_done) == ("committed", ((0, 1), (2, 3)), False)
    assert not answer.lease_lost
    batch = await room.get(batch_id)
    assert (batch.completed, batch.failed, batch.used_input_tokens, batch.used_output_tokens) == (1, 1, 20, 5)


async def test_a_lost_acknowledgement_is_replayed_with_the_first_answer(room: Any) -> None:
    batch_id = await room.batch(6)
    asked = await room.part(await room.lease(batch_id), [0, 1])
    assert (await room.send(asked)).outcome == "committed"
    again = await room.send(asked)
    assert (again.outcome, again.outcome_before, again.done) == ("replayed", "committed", ((0, 2),))
    assert await counted(room, batch_id) == [0, 1]
    assert (await room.get(batch_id)).completed == 2


async def test_a_replayed_last_commit_says_that_the_shard_is_done_and_not_lost(room: Any) -> None:
    batch_id = await room.batch(6)
    asked = await room.part(await room.lease(batch_id), [0, 1, 2])
    first = await room.send(asked)
    again = await room.send(asked)
    assert (first.shard_done, first.lease_lost) == (again.shard_done, again.lease_lost) == (True, False)


async def test_commits_decided_together_are_answered_as_one_after_the_other(room: Any) -> None:
    batch_id = await room.batch(9)
    first, second = await room.lease(batch_id), await room.lease(batch_id, "two")
    half = await room.part(first, [0, 1], seq=0)
    late, twice = await room.part(second, [3, 4, 5], seq=0), await room.part(first, [1, 2], seq=1)
    sent = [
        ("one", half, "committed"),
        ("one", half, "replayed"),  # the answer was lost, and it came again before anything was written
        ("one", twice, "rejected_overlap"),
        ("one", twice, "replayed"),  # of the refusal, whose row is as new
        ("one", await room.part(first, [2], seq=0), "rejected_conflict"),
        ("two", late, "committed"),
        ("two", await room.part(first, [2], seq=2), "rejected_invalid"),  # another's lease
        ("gone", await room.part(second, [3], seq=1), "rejected_revoked"),
        ("one", await room.part(first, [2], seq=3), "committed"),
    ]
    await room.revoke("gone")
    async with room.database.transaction() as session:
        asked = [commits.Asked(batch_id=batch_id, placement_id=placement, commit=part) for placement, part, _ in sent]
        answers = await commits.commit_together(session, asked)
    assert [answer.outcome for answer in answers] == [outcome for _, _, outcome in sent]
    assert [answer.done for answer in answers[:3]] == [((0, 2),), ((0, 2),), ((0, 2),)], (
        "of its own moment, not of the end"
    )
    assert answers[3].outcome_before == "rejected_overlap"
    assert (answers[-1].done, answers[-1].shard_done, answers[-1].lease_lost) == (((0, 3),), True, False)
    assert await counted(room, batch_id) == [0, 1, 2, 3, 4, 5]
    batch = await room.get(batch_id)
    assert (batch.completed, batch.used_input_tokens) == (6, 60)
    async with room.database.transaction() as session:
        told = (await session.scalars(select(OutboxEvent).where(OutboxEvent.kind == "part.committed"))).all()
    assert sorted(event.payload["completed"] for event in told) == [2, 5, 6], "each tells how far the batch was then"


async def test_what_is_sent_after_the_last_line_in_the_same_transaction_finds_the_batch_closed(room: Any) -> None:
    batch_id = await room.batch(3)
    lease = await room.lease(batch_id)
    parts = [await room.part(lease, lines, seq=seq) for seq, lines in enumerate(([0, 1, 2], [0]))]
    async with room.database.transaction() as session:
        asked = [commits.Asked(batch_id=batch_id, placement_id="one", commit=part) for part in parts]
        answers = await commits.commit_together(session, asked)
    assert [answer.outcome for answer in answers] == ["committed", "rejected_terminal"]
    assert (await room.get(batch_id)).status == "finalizing"


async def test_commits_of_several_batches_are_decided_together(room: Any) -> None:
    first, second = await room.batch(3), await room.batch(3)
    parts = [(batch, await room.part(await room.lease(batch), [0, 1])) for batch in (second, first)]
    async with room.database.transaction() as session:
        asked = [commits.Asked(batch_id=batch, placement_id="one", commit=part) for batch, part in parts]
        assert [answer.outcome for answer in await commits.commit_together(session, asked)] == ["committed"] * 2
    for batch in (first, second):
        assert (await counted(room, batch), (await room.get(batch)).completed) == ([0, 1], 2)
    with pytest.raises(LeaseUnknown):
        async with room.database.transaction() as session:
            await commits.commit_together(
                session, [commits.Asked(batch_id=first, placement_id="one", commit=parts[0][1])]
            )


async def test_another_part_under_the_same_name_is_a_conflict(room: Any) -> None:
    batch_id = await room.batch(6)
    lease = await room.lease(batch_id)
    assert (await room.send(await room.part(lease, [0], seq=1))).outcome == "committed"
    other = await room.send(await room.part(lease, [1], seq=1))
    assert other.outcome == "rejected_conflict"
    assert await counted(room, batch_id) == [0]


async def test_a_part_of_a_superseded_lease_counts_once(room: Any) -> None:
    batch_id = await room.batch(3)
    first = await room.lease(batch_id, "one")
    room.clock(61)
    second = await room.lease(batch_id, "two")
    assert (second.shard_id, second.epoch) == (first.shard_id, first.epoch + 1)
    assert (await room.commit(second, [0, 1], "two")).outcome == "committed"
    late = await room.commit(first, [1, 2], "one")
    assert (late.outcome, late.done, late.lease_lost) == ("rejected_overlap", ((0, 2),), True)
    disjoint = await room.commit(first, [2], "one")
    assert (disjoint.outcome, disjoint.lease_lost, disjoint.shard_done) == ("committed_superseded", True, True)
    assert await counted(room, batch_id) == [0, 1, 2]


async def test_the_newest_lease_cannot_repeat_what_a_zombie_committed_meanwhile(room: Any) -> None:
    batch_id = await room.batch(3)
    zombie = await room.lease(batch_id, "one")
    room.clock(61)
    newest = await room.lease(batch_id, "two")
    assert (await room.commit(zombie, [0], "one")).outcome == "committed_superseded"
    answer = await room.commit(newest, [0, 1], "two")
    assert (answer.outcome, answer.lease_lost, answer.done) == ("rejected_overlap", False, ((0, 1),))
    assert (await room.commit(newest, [1, 2], "two")).outcome == "committed"
    assert await counted(room, batch_id) == [0, 1, 2]


async def test_an_overlap_keeps_what_it_cost_and_is_final(room: Any) -> None:
    batch_id = await room.batch(3)
    lease = await room.lease(batch_id)
    await room.commit(lease, [0])
    wasted = await room.part(lease, [0, 1])
    assert (await room.send(wasted)).outcome == "rejected_overlap"
    again = await room.send(wasted)
    assert (again.outcome, again.outcome_before) == ("replayed", "rejected_overlap")
    async with room.database.transaction() as session:
        row = await session.get_one(Part, (lease.shard_id, lease.epoch, wasted.seq))
    assert (row.counted, row.prompt_tokens) == (False, 20)


async def test_nothing_of_a_revoked_placement_counts_any_more(room: Any) -> None:
    batch_id = await room.batch(6)
    lease = await room.lease(batch_id)
    kept = await room.part(lease, [0])
    assert (await room.send(kept)).outcome == "committed"
    assert await room.revoke("one") == 1
    answer = await room.commit(lease, [1])
    assert (answer.outcome, answer.lease_lost) == ("rejected_revoked", True)
    assert (await room.send(kept)).outcome == "replayed", "what was answered before stays answered"
    assert await counted(room, batch_id) == [0]


async def test_a_commit_after_the_batch_was_cancelled_is_refused(room: Any) -> None:
    batch_id = await room.batch(6)
    lease = await room.lease(batch_id)
    await room.cancel(batch_id)
    during = await room.commit(lease, [0])
    assert (during.outcome, during.lease_lost) == ("committed", True), "what is finished while draining still counts"
    room.clock(61)
    assert await room.advance() == [batch_id]
    assert (await room.commit(lease, [1])).outcome == "rejected_terminal"


async def test_a_commit_after_the_deadline_is_refused_before_any_loop_notices(room: Any) -> None:
    batch_id = await room.batch(6, completion_window="10m")
    lease = await room.lease(batch_id, ttl_s=3600)
    room.clock(480)
    assert (await room.commit(lease, [0])).outcome == "committed"
    room.clock(121)
    assert (await room.commit(lease, [1])).outcome == "rejected_terminal"
    assert (await room.get(batch_id)).status == "in_progress"


async def test_a_commit_of_a_lease_that_expired_but_was_not_taken_over_counts(room: Any) -> None:
    batch_id = await room.batch(6)
    lease = await room.lease(batch_id)
    room.clock(300)
    answer = await room.commit(lease, [0])
    assert (answer.outcome, answer.lease_lost) == ("committed", False)


async def test_a_commit_of_a_lease_given_back_counts_as_superseded(room: Any) -> None:
    batch_id = await room.batch(6)
    lease = await room.lease(batch_id)
    await room.abandon("one")
    answer = await room.commit(lease, [0])
    assert (answer.outcome, answer.lease_lost) == ("committed_superseded", True)


def metered(n: int) -> LineUsage:
    return LineUsage(idx=n, status="completed", prompt_tokens=1, completion_tokens=1, cached_tokens=0, attempts=1)


FORGED = [
    ({"nonce": "0" * 32}, "nonce"),  # the epoch is right, the receiver of the lease is not
    ({"epoch": 7}, "never leased"),  # an epoch from before a restored backup
    ({"lines": ((2, 4),), "usage": (2, 3)}, "not all in the shard"),  # line 3 is the next shard's
    ({"lines": (), "usage": ()}, "no line"),
    ({"lines": ((0, 1), (1, 2)), "usage": (0, 1)}, "touches"),  # ranges that are not in normal form
    ({"lines": ((1, 2), (0, 1)), "usage": (0, 1)}, "out of order"),
    ({"lines": ((2, 2),), "usage": ()}, "empty"),
    ({"usage": (0,)}, "usage"),  # a line without its meter
    ({"usage": (0, 1, 2)}, "usage"),  # a meter without its line
    ({"usage": (0, 1, 1)}, "twice"),
    ({"key": "other-project/batch/parts/x"}, "key"),  # an object that this worker was never allowed to write
]


@pytest.mark.parametrize(("changes", "reason"), FORGED)
async def test_a_claim_that_does_not_hold_is_invalid(room: Any, changes: dict[str, Any], reason: str) -> None:
    batch_id = await room.batch(6)
    asked = await room.part(await room.lease(batch_id), [0, 1])
    changes = dict(changes)
    if "usage" in changes:
        changes["usage"] = tuple(metered(n) for n in changes["usage"])
    forged = msgspec.structs.replace(asked, **changes)
    if "epoch" in changes:
        key = part_key("acme", batch_id, asked.shard_id, epoch=forged.epoch, seq=forged.seq, sha256=forged.sha256)
        forged = msgspec.structs.replace(forged, key=key)
    answer = await room.send(forged)
    assert answer.outcome == "rejected_invalid"
    assert reason in (answer.message or "")
    assert await counted(room, batch_id) == []


async def test_a_lease_serves_only_the_placement_that_it_was_granted_to(room: Any) -> None:
    batch_id = await room.batch(6)
    lease = await room.lease(batch_id, "one")
    answer = await room.commit(lease, [0], placement="two")
    assert (answer.outcome, answer.message and "another placement" in answer.message) == ("rejected_invalid", True)


async def test_a_commit_to_no_shard_is_an_error(room: Any) -> None:
    asked = Commit(
        shard_id="shard_x", epoch=1, nonce="n", seq=1, key="k", size=1, sha256="0" * 64, lines=((0, 1),), usage=()
    )
    with pytest.raises(LeaseUnknown, match="shard_x"):
        await room.send(asked)


async def test_a_crash_inside_the_transaction_leaves_nothing_and_the_retry_counts(room: Any) -> None:
    batch_id = await room.batch(3)
    asked = await room.part(await room.lease(batch_id), [0, 1, 2])
    with pytest.raises(RuntimeError, match="killed"):
        async with room.database.transaction() as session:
            assert (await commits.commit(session, "one", asked)).outcome == "committed"
            raise RuntimeError("killed before the transaction ended")
    assert await counted(room, batch_id) == []
    assert (await room.get(batch_id)).status == "in_progress"
    assert (await room.send(asked)).outcome == "committed"
    assert (await room.get(batch_id)).status == "finalizing"


async def test_an_upload_without_a_commit_does_not_exist(room: Any) -> None:
    batch_id = await room.batch(3)
    lost = await room.lease(batch_id, "one")
    await room.part(lost, [0, 1, 2])
    room.clock(61)
    second = await room.lease(batch_id, "two")
    assert second.done == ()
    assert (await room.commit(second, [0, 1, 2], "two")).outcome == "committed"


async def test_every_commit_leaves_an_event_under_an_id_of_its_own(room: Any) -> None:
    batch_id = await room.batch(3)
    lease = await room.lease(batch_id)
    asked = await room.part(lease, [0])
    await room.send(asked)
    await room.send(asked)
    await room.commit(lease, [1, 2])
    async with room.database.transaction() as session:
        events = list(await session.scalars(select(OutboxEvent).order_by(OutboxEvent.id)))
    kinds = [event.kind for event in events]
    assert kinds == ["batch.validating", "batch.in_progress", "part.committed", "part.committed", "batch.finalizing"]
    assert len({event.id for event in events}) == len(events)


async def test_concurrent_leases_commits_repeats_and_deaths_leave_each_line_once(room: Any) -> None:
    """All at once, in whatever order the database takes them."""
    batch_id = await room.batch(30, shard_lines=3)
    workers = [f"worker-{n}" for n in range(15)]
    granted = await asyncio.gather(*(room.try_lease(batch_id, worker) for worker in workers))
    held = [(lease, worker) for lease, worker in zip(granted, workers, strict=True) if lease is not None]
    assert len({lease.shard_id for lease, _ in held}) == len(held) > 0
    sent = []
    for lease, worker in held:
        first = lease.first_idx
        sent += [(await room.part(lease, numbers), worker) for numbers in ([first, first + 1], [first + 1, first + 2])]
    await asyncio.gather(
        *(room.send(asked, worker) for asked, worker in [*sent, *sent]), *(room.abandon(worker) for worker in workers)
    )
    await room.answer_all(batch_id)
    assert await counted(room, batch_id) == list(range(30))
    assert (await room.finalise(batch_id)).completed == 30


def test_a_part_key_names_shard_epoch_seq_and_content() -> None:
    sha256 = hashlib.sha256(b"x").hexdigest()
    keys = {
        part_key("p", "b", shard, epoch=epoch, seq=seq, sha256=sha)
        for shard in ("s1", "s2")
        for epoch in (1, 11)
        for seq in (1, 11)
        for sha in (sha256, "0" * 64)
    }
    assert len(keys) == 16
