"""Lines that the broker answers itself: no worker gets them, and they count exactly once."""

from __future__ import annotations

from typing import Any

from sqlalchemy import func, select

from jobs import batches
from jobs.tables import OutboxEvent, Part
from tests.support.object_stores import damage


async def outbox_kinds(room: Any) -> list[str]:
    async with room.database.transaction() as session:
        return list(await session.scalars(select(OutboxEvent.kind).order_by(OutboxEvent.id)))


async def part_rows(room: Any) -> int:
    async with room.database.transaction() as session:
        return int(await session.scalar(select(func.count()).select_from(Part)) or 0)


async def test_a_worker_is_told_to_leave_reserved_lines_alone(room: Any) -> None:
    batch_id = await room.batch(3, reserved=[1])
    lease = await room.lease(batch_id)
    assert lease.done == ((1, 2),)


async def test_a_shard_with_nothing_but_reserved_lines_is_not_leased(room: Any) -> None:
    batch_id = await room.batch(6, reserved=[0, 1, 2])
    assert (await room.lease(batch_id)).first_idx == 3
    assert await room.try_lease(batch_id, "two") is None


async def test_the_lease_ends_when_only_reserved_lines_are_left_and_the_shard_is_not_leased_again(room: Any) -> None:
    batch_id = await room.batch(3, reserved=[2])
    answer = await room.commit(lease := await room.lease(batch_id), [0, 1])
    assert (answer.outcome, answer.shard_done) == ("committed", True)
    assert not await room.renew(lease), "the lease is over"
    assert (await room.shard(lease.shard_id)).state == "pending"
    assert await room.try_lease(batch_id) is None


async def test_reserved_lines_that_are_answered_close_the_batch(room: Any) -> None:
    batch_id = await room.batch(3, reserved=[1, 2])
    await room.commit(await room.lease(batch_id), [0])
    assert await room.own_commit(await room.own_part(batch_id, 0, [1, 2])) == "committed"
    batch = await room.finalise(batch_id)
    assert (batch.status, batch.completed, batch.reused) == ("completed", 3, 2)
    output = await room.read(batch.output_file_id)
    assert [line["response"]["request_id"] for line in output[1:]] == ["broker-1", "broker-2"]


async def test_own_answers_use_no_tokens_and_say_what_they_saved(room: Any) -> None:
    batch_id = await room.batch(3, reserved=[1, 2])
    await room.own_commit(await room.own_part(batch_id, 0, [1, 2]))
    batch = await room.get(batch_id)
    assert (batch.used_input_tokens, batch.used_output_tokens) == (0, 0)
    assert (batch.reused_input_tokens, batch.reused_output_tokens, batch.saved_nano) == (20, 10, 14)


async def test_invalid_lines_fail_and_the_batch_still_completes(room: Any) -> None:
    batch_id = await room.batch(3, reserved=[0])
    await room.own_commit(await room.own_part(batch_id, 0, [0], "invalid"))
    await room.answer_all(batch_id)
    batch = await room.finalise(batch_id)
    assert (batch.status, batch.completed, batch.failed, batch.invalid) == ("completed", 2, 1, 1)
    [error] = await room.read(batch.error_file_id)
    assert (error["custom_id"], error["error"]["code"]) == ("id-0", "invalid_json_line")


async def test_each_half_done_twice_is_one_object_one_row_and_one_event(room: Any) -> None:
    batch_id = await room.batch(3, reserved=[1, 2])
    first, again = await room.own_part(batch_id, 0, [1, 2]), await room.own_part(batch_id, 0, [1, 2])
    assert first == again
    assert [await room.own_commit(first), await room.own_commit(again)] == ["committed", "replayed"]
    assert (await room.get(batch_id)).completed == 2
    assert await part_rows(room) == 1
    assert (await outbox_kinds(room)).count("part.committed") == 1


async def test_a_batch_that_takes_no_more_answers_takes_none_of_ours_either(room: Any) -> None:
    batch_id = await room.batch(3, reserved=[1])
    part = await room.own_part(batch_id, 0, [1])
    room.clock(25 * 3600)
    assert await room.own_commit(part) == "rejected_terminal"


async def test_a_worker_cannot_answer_a_reserved_line_in_our_place(room: Any) -> None:
    batch_id = await room.batch(3, reserved=[1])
    answer = await room.commit(await room.lease(batch_id), [0, 1])
    assert (answer.outcome, answer.done) == ("rejected_overlap", ((1, 2),))


async def test_an_own_part_never_answers_what_a_worker_answered(room: Any) -> None:
    batch_id = await room.batch(3, reserved=[1])
    await room.commit(await room.lease(batch_id), [0])
    assert await room.own_commit(await room.own_part(batch_id, 0, [0, 1])) == "rejected_overlap"


async def test_reserved_lines_are_no_work_for_the_plan(room: Any) -> None:
    batch_id = await room.batch(6, reserved=[0, 1, 2, 3])
    async with room.database.transaction() as session:
        left = await batches.remaining(session, batch_id)
    whole = (await room.get(batch_id)).output_tokens
    assert (left.lines, left.output_tokens) == (2, whole // 3)


async def test_lines_that_are_given_to_workers_are_run(room: Any) -> None:
    batch_id = await room.batch(3, reserved=[1, 2])
    assert await room.give_to_workers(batch_id, 0, [2])
    assert (await room.lease(batch_id)).done == ((1, 2),)


async def test_lines_are_not_given_away_under_a_lease_whose_holder_does_not_know_of_them(room: Any) -> None:
    batch_id = await room.batch(3, reserved=[2])
    lease = await room.lease(batch_id)
    assert not await room.give_to_workers(batch_id, 0, [2])
    await room.commit(lease, [0, 1])
    assert await room.give_to_workers(batch_id, 0, [2])
    assert (await room.lease(batch_id)).done == ((0, 2),)


async def test_a_damaged_own_part_is_cut_again_under_another_name(room: Any) -> None:
    batch_id = await room.batch(3, reserved=[1, 2])
    first = await room.own_part(batch_id, 0, [1, 2])
    await room.own_commit(first)
    await room.answer_all(batch_id)
    await damage(room.store, first.key, b"rot")
    batch = await room.finalise(batch_id)
    assert (batch.status, batch.completed, batch.reused, batch.saved_nano) == ("in_progress", 1, 0, 0)
    assert await room.try_lease(batch_id) is None, "its lines wait for the broker, not for a worker"
    again = await room.own_part(batch_id, 0, [1, 2], withdrawn=1)
    assert again.key != first.key
    assert await room.own_commit(again) == "committed"
    assert (await room.finalise(batch_id)).status == "completed"


async def test_a_cancelled_batch_publishes_own_answers_beside_what_was_not_run(room: Any) -> None:
    batch_id = await room.batch(3, reserved=[1, 2])
    await room.own_commit(await room.own_part(batch_id, 0, [1, 2]))
    await room.cancel(batch_id)
    await room.advance()
    batch = await room.finalise(batch_id)
    assert (batch.status, batch.completed, batch.cancelled) == ("cancelled", 2, 1)
