"""The finaliser: every line once, in order, verified; it may die anywhere and start over."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import pytest
from sqlalchemy import select, update

from jobs import results, usage
from jobs.errors import BadTransition, CountsDisagree, ObjectCorrupt, ObjectExists
from jobs.keys import part_key
from jobs.tables import Batch, File, Part, Shard
from jobs.types import Commit


async def names(room: Any, file_id: str | None) -> list[str]:
    return [line["custom_id"] for line in await room.read(file_id)]


async def test_completed_lines_are_the_output_in_input_order(room: Any) -> None:
    batch_id = await room.batch(7)
    second = [await room.lease(batch_id), await room.lease(batch_id)][1]
    await room.commit(second, [5, 3])
    await room.abandon("one")
    await room.answer_all(batch_id)
    batch = await room.finalise(batch_id)
    assert (batch.status, batch.completed, batch.error_file_id) == ("completed", 7, None)
    assert batch.completed_us is not None
    output = await room.read(batch.output_file_id)
    assert [line["custom_id"] for line in output] == [f"id-{n}" for n in range(7)]
    assert list(output[0]) == ["id", "custom_id", "response", "error"]
    assert output[3]["response"]["body"] == {"text": "answer 3 ✓"}
    assert output[3]["error"] is None
    assert len({line["id"] for line in output}) == 7
    assert all(line["id"].startswith("batch_req_") for line in output)


async def test_a_batch_may_ask_for_the_order_of_completion(room: Any) -> None:
    batch_id = await room.batch(6, line_order="completion")
    first, second = await room.lease(batch_id), await room.lease(batch_id)
    for lease, lines in ((second, [4]), (first, [0, 2]), (second, [3, 5]), (first, [1])):
        room.clock(1)
        await room.commit(lease, lines, failed=[5] if 5 in lines else [])
    batch = await room.finalise(batch_id)
    # within a part, the worker's own order of completion (descending in these tests)
    assert await names(room, batch.output_file_id) == ["id-4", "id-2", "id-0", "id-3", "id-1"]
    assert await names(room, batch.error_file_id) == ["id-5"]


async def test_failed_lines_go_to_the_error_file(room: Any) -> None:
    batch_id = await room.batch(4)
    await room.answer_all(batch_id, failed=[1, 3])
    batch = await room.finalise(batch_id)
    assert (batch.status, batch.completed, batch.failed) == ("completed", 2, 2)
    assert await names(room, batch.output_file_id) == ["id-0", "id-2"]
    errors = await room.read(batch.error_file_id)
    assert [(line["custom_id"], line["response"], line["error"]["code"]) for line in errors] == [
        ("id-1", None, "engine_error"),
        ("id-3", None, "engine_error"),
    ]


async def test_a_batch_of_failures_alone_has_no_output_file(room: Any) -> None:
    batch_id = await room.batch(2)
    await room.answer_all(batch_id, failed=[0, 1])
    batch = await room.finalise(batch_id)
    assert (batch.status, batch.output_file_id) == ("completed", None)


async def test_an_expired_batch_publishes_what_it_has(room: Any) -> None:
    batch_id = await room.batch(6, completion_window="10m")
    await room.commit(await room.lease(batch_id), [0, 2], failed=[2])
    room.clock(601)
    await room.advance()
    batch = await room.finalise(batch_id)
    assert (batch.status, batch.completed, batch.failed, batch.expired, batch.cancelled) == ("expired", 1, 1, 4, 0)
    assert await names(room, batch.output_file_id) == ["id-0"]
    errors = await room.read(batch.error_file_id)
    assert [(line["custom_id"], line["error"]["code"]) for line in errors] == [
        ("id-2", "engine_error"),
        ("id-1", "batch_expired"),
        ("id-3", "batch_expired"),
        ("id-4", "batch_expired"),
        ("id-5", "batch_expired"),
    ]


async def test_a_cancelled_batch_publishes_what_it_has(room: Any) -> None:
    batch_id = await room.batch(3)
    await room.commit(await room.lease(batch_id), [1])
    await room.cancel(batch_id)
    room.clock(61)
    await room.advance()
    assert (await room.get(batch_id)).status == "cancelling", "not cancelled before its files are there"
    batch = await room.finalise(batch_id)
    assert (batch.status, batch.completed, batch.cancelled) == ("cancelled", 1, 2)
    assert await names(room, batch.output_file_id) == ["id-1"]
    assert {line["error"]["code"] for line in await room.read(batch.error_file_id)} == {"batch_cancelled"}


async def test_a_batch_that_expires_while_validating_ends_without_files(room: Any) -> None:
    batch = await room.create(await room.upload(b"{}"), completion_window="1m")
    room.clock(61)
    assert await room.advance() == [batch.id]
    ended = await room.finalise(batch.id)
    assert (ended.status, ended.output_file_id, ended.error_file_id) == ("expired", None, None)


async def test_a_batch_that_is_not_closed_has_no_plan(room: Any) -> None:
    batch_id = await room.batch(3)
    async with room.database.transaction() as session:
        assert await results.load_final_plan(session, batch_id) is None
    await room.answer_all(batch_id)
    await room.finalise(batch_id)
    async with room.database.transaction() as session:
        assert await results.load_final_plan(session, batch_id) is None


# --- dying and starting over -----------------------------------------------------------------------------------------


async def test_composing_again_after_a_crash_finds_the_same_bytes(room: Any) -> None:
    batch_id = await room.batch(4)
    await room.answer_all(batch_id, failed=[2])
    first = await room.compose(batch_id)
    again = await room.compose(batch_id)
    assert again == first
    batch = await room.finish(batch_id, again)
    assert await names(room, batch.output_file_id) == ["id-0", "id-1", "id-3"]


async def test_a_crash_between_the_two_files_is_made_good(room: Any) -> None:
    batch_id = await room.batch(4)
    await room.answer_all(batch_id, failed=[2])
    composed = await room.compose(batch_id)
    await room.store.delete(composed.errors.key)
    assert await room.compose(batch_id) == composed


async def test_finishing_twice_ends_the_batch_once(room: Any) -> None:
    batch_id = await room.batch(3)
    await room.answer_all(batch_id)
    composed = await room.compose(batch_id)
    first = await room.finish(batch_id, composed)
    second = await room.finish(batch_id, composed)
    assert (second.version, second.output_file_id) == (first.version, first.output_file_id)
    async with room.database.transaction() as session:
        files = list(await session.scalars(select(File).where(File.purpose == "batch_output")))
    assert len(files) == 1


async def test_a_foreign_object_under_the_result_s_name_is_not_published(room: Any) -> None:
    batch_id = await room.batch(3)
    await room.answer_all(batch_id)
    composed = await room.compose(batch_id)
    await room.store.delete(composed.output.key)
    await room.store.put(composed.output.key, b"something else")
    with pytest.raises(ObjectExists, match="other content"):
        await room.compose(batch_id)


# --- damage ----------------------------------------------------------------------------------------------------------


async def remove(room: Any, asked: Commit) -> None:
    await room.store.delete(asked.key)


async def flip(room: Any, asked: Commit) -> None:
    content = bytearray(await room.store.get(asked.key))
    content[len(content) // 2] ^= 1
    await room.store.delete(asked.key)
    await room.store.put(asked.key, bytes(content))


async def cut(room: Any, asked: Commit) -> None:
    content = await room.store.get(asked.key)
    await room.store.delete(asked.key)
    await room.store.put(asked.key, content[:-9])


@pytest.mark.parametrize("damage", [remove, flip, cut])
@pytest.mark.parametrize("line_order", ["input", "completion"])
async def test_damaged_parts_are_withdrawn_and_their_lines_run_again(
    room: Any, damage: Callable[[Any, Commit], Awaitable[None]], line_order: str
) -> None:
    batch_id = await room.batch(6, line_order=line_order)
    lease = await room.lease(batch_id)
    good, bad = await room.part(lease, [0]), await room.part(lease, [1, 2], failed=[2])
    await room.send(good)
    await room.send(bad)
    await room.answer_all(batch_id)
    await damage(room, bad)
    composed = await room.compose(batch_id)
    assert [(part.epoch, part.seq) for part in composed.damaged] == [(bad.epoch, bad.seq)]
    batch = await room.finish(batch_id, composed)
    assert (batch.status, batch.ending, batch.completed, batch.failed) == ("in_progress", None, 4, 0)
    assert batch.used_input_tokens == 4 * 10
    redo = await room.lease(batch_id, "two")
    assert (redo.shard_id, redo.done) == (lease.shard_id, ((0, 1),))
    assert (await room.commit(redo, [1, 2], "two")).outcome == "committed"
    assert (await room.send(bad)).outcome == "replayed", "the old claim does not come back"
    batch = await room.finalise(batch_id)
    assert (batch.status, batch.completed, batch.failed) == ("completed", 6, 0)
    assert sorted(await names(room, batch.output_file_id)) == [f"id-{n}" for n in range(6)]


async def test_every_damaged_part_is_withdrawn_at_once(room: Any) -> None:
    batch_id = await room.batch(6)
    asked = [await room.part(await room.lease(batch_id), lines) for lines in ([0, 1, 2], [3, 4, 5])]
    for part in asked:
        await room.send(part)
        await remove(room, part)
    composed = await room.compose(batch_id)
    assert len(composed.damaged) == 2
    assert (await room.finish(batch_id, composed)).completed == 0


async def test_lines_of_a_damaged_part_expire_when_there_is_no_time_left(room: Any) -> None:
    batch_id = await room.batch(3, completion_window="10m")
    asked = await room.part(await room.lease(batch_id), [0, 1, 2])
    await room.send(asked)
    await remove(room, asked)
    room.clock(601)
    assert (await room.finish(batch_id, await room.compose(batch_id))).status == "finalizing"
    batch = await room.finalise(batch_id)
    assert (batch.status, batch.expired, batch.output_file_id) == ("expired", 3, None)


def rewritten(change: Callable[[list[dict[str, Any]]], object]) -> Callable[[bytes], bytes]:
    def apply(content: bytes) -> bytes:
        lines = [json.loads(line) for line in gzip.decompress(content).splitlines()]
        change(lines)
        return gzip.compress(b"".join(json.dumps(line).encode() + b"\n" for line in lines))

    return apply


LIES = [
    (rewritten(lambda lines: lines.pop()), "holds lines"),  # claims a line that it does not hold
    (rewritten(lambda lines: lines.append(lines[0])), "twice"),
    (rewritten(lambda lines: lines[0].update(idx=1)), "twice"),
    (rewritten(lambda lines: lines[0].update(status="failed")), "failed in it"),
    (rewritten(lambda lines: lines[0]["line"].update(custom_id="id-0")), "another custom_id"),  # answers swapped
    (rewritten(lambda lines: lines[0]["line"].pop("error")), "not a part line"),
    (gzip.decompress, "not gzip"),
    (lambda content: content + content, "followed by"),
    (lambda content: gzip.compress(gzip.decompress(content).replace("✓".encode(), b"\xff")), "not a part line"),
]


@pytest.mark.parametrize(("lie", "reason"), LIES)
async def test_a_part_whose_content_is_not_what_was_claimed_is_damaged(
    room: Any, lie: Callable[[bytes], bytes], reason: str
) -> None:
    """The worker tells the truth about size and sha256, and lies about what is inside."""
    batch_id = await room.batch(3)
    lease = await room.lease(batch_id)
    asked = await room.part(lease, [0, 1, 2])
    content = lie(await room.store.get(asked.key))
    sha256 = hashlib.sha256(content).hexdigest()
    key = part_key(lease.project, batch_id, lease.shard_id, epoch=lease.epoch, seq=asked.seq, sha256=sha256)
    await room.store.put(key, content)
    asked = msgspec.structs.replace(asked, key=key, size=len(content), sha256=sha256)
    assert (await room.send(asked)).outcome == "committed"
    (damaged,) = (await room.compose(batch_id)).damaged
    assert reason in damaged.reason


async def test_a_damaged_input_stops_the_finaliser_visibly(room: Any) -> None:
    batch_id = await room.batch(3)
    await room.answer_all(batch_id)
    key = (await room.get(batch_id)).input_key
    content = await room.store.get(key)
    await room.store.delete(key)
    await room.store.put(key, content.replace(b"question 1", b"question 2"))
    with pytest.raises(ObjectCorrupt, match="not those that were validated"):
        await room.compose(batch_id)
    assert (await room.get(batch_id)).status == "finalizing"


# --- counts ----------------------------------------------------------------------------------------------------------


async def change(room: Any, statement: Any) -> None:
    async with room.database.transaction() as session:
        await session.execute(statement)


WRONG = [
    update(Batch).values(completed=2),
    update(Batch).values(total=4),
    update(Batch).values(completed=2, failed=1),
    update(Shard).values(done=[[0, 2]]),
    update(Part).values(counted=False),
    update(Part).values(lines=[[0, 2]]),
]


@pytest.mark.parametrize("statement", WRONG)
async def test_counts_that_disagree_are_not_published(room: Any, statement: Any) -> None:
    batch_id = await room.batch(3)
    await room.answer_all(batch_id)
    await change(room, statement)
    with pytest.raises(CountsDisagree):
        await room.plan(batch_id)
    assert (await room.get(batch_id)).status == "finalizing"


async def test_a_line_in_two_counted_parts_is_not_published(room: Any) -> None:
    batch_id = await room.batch(3)
    lease = await room.lease(batch_id)
    await room.commit(lease, [0, 1])
    assert (await room.commit(lease, [1])).outcome == "rejected_overlap"
    await room.commit(lease, [2])
    await change(room, update(Part).values(counted=True))
    with pytest.raises(CountsDisagree, match="different ones"):
        await room.plan(batch_id)


async def test_a_plan_that_is_out_of_date_does_not_end_the_batch(room: Any) -> None:
    batch_id = await room.batch(3)
    await room.answer_all(batch_id)
    stale = await room.compose(batch_id)
    await change(room, update(Batch).values(version=Batch.version + 1))
    with pytest.raises(BadTransition, match="changed while it was composed"):
        await room.finish(batch_id, stale)
    assert (await room.finalise(batch_id)).status == "completed"


# --- usage -----------------------------------------------------------------------------------------------------------


async def test_usage_is_told_by_placement_with_the_wasted_work_marked(room: Any) -> None:
    batch_id = await room.batch(3)
    first = await room.lease(batch_id, "one")
    await room.commit(first, [0], "one")
    await room.commit(first, [0, 1], "one")
    await room.abandon("one")
    await room.commit(await room.lease(batch_id, "two"), [1, 2], "two", failed=[2])
    async with room.database.transaction() as session:
        told = [part async for part in usage.part_usage(session, batch_id=batch_id)]
        of_two = [part async for part in usage.part_usage(session, placement_id="two")]
    assert [(p.placement_id, p.is_counted, [line.idx for line in p.lines]) for p in told] == [
        ("one", True, [0]),
        ("one", False, [0, 1]),
        ("two", True, [1, 2]),
    ]
    assert [(line.idx, line.status) for part in of_two for line in part.lines] == [(1, "completed"), (2, "failed")]
