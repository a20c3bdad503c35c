"""What went wrong with results elsewhere, as promises of ours: each test names the thread of the field."""

from __future__ import annotations

from typing import Any

from jobs.types import TERMINAL


async def names(room: Any, *file_ids: str | None) -> list[str]:
    return [line["custom_id"] for file_id in file_ids for line in await room.read(file_id)]


async def test_failed_lines_are_not_counted_as_completed(room: Any) -> None:
    """vllm-project/aibrix #2253, litellm PR #37208."""
    batch_id = await room.batch(4)
    await room.answer_all(batch_id, failed=[0, 1, 3])
    batch = await room.finalise(batch_id)
    assert (batch.status, batch.completed, batch.failed) == ("completed", 1, 3)
    assert await names(room, batch.output_file_id) == ["id-2"]
    assert await names(room, batch.error_file_id) == ["id-0", "id-1", "id-3"]


async def test_a_file_without_lines_is_null_and_never_an_empty_text(room: Any) -> None:
    """tobert/kaibo #93; a client that only looked for the output lost the errors: openai-cookbook #1564."""
    good, bad = await room.batch(2), await room.batch(2)
    await room.answer_all(good)
    await room.answer_all(bad, failed=[0, 1])
    assert (await room.finalise(good)).error_file_id is None
    only_errors = await room.finalise(bad)
    assert only_errors.output_file_id is None
    assert await names(room, only_errors.error_file_id) == ["id-0", "id-1"]


async def test_every_line_is_in_just_one_of_the_two_files(room: Any) -> None:
    """TU-Wien-dataLAB/aqueduct #55, cds-snc/ai-answers #1272: lines in neither file."""
    batch_id = await room.batch(9, shard_lines=2)
    lease = await room.lease(batch_id)
    await room.commit(lease, [1], failed=[1])
    await room.abandon("one")
    await room.answer_all(batch_id, failed=[4])
    batch = await room.finalise(batch_id)
    found = await names(room, batch.output_file_id, batch.error_file_id)
    assert sorted(found) == sorted(f"id-{n}" for n in range(9))


async def test_a_resumed_shard_brings_no_line_twice(room: Any) -> None:
    """NousResearch/hermes-agent #95322, ogx #3144: the first worker comes back after another has taken over."""
    batch_id = await room.batch(3)
    first = await room.lease(batch_id, "one")
    late = await room.part(first, [1, 2])
    await room.commit(first, [0], "one")
    await room.abandon("one")
    second = await room.lease(batch_id, "two")
    await room.commit(second, [1], "two")
    assert (await room.send(late, "one")).outcome == "rejected_overlap"
    await room.commit(second, [2], "two")
    batch = await room.finalise(batch_id)
    assert await names(room, batch.output_file_id) == ["id-0", "id-1", "id-2"]


async def test_an_expired_batch_gives_what_it_has_and_says_what_it_has_not(room: Any) -> None:
    """warmbly #333, curator #226, llm-d-batch-gateway #154: partial results thrown away."""
    batch_id = await room.batch(4, completion_window="10m")
    await room.commit(await room.lease(batch_id), [2])
    room.clock(601)
    await room.advance()
    batch = await room.finalise(batch_id)
    assert await names(room, batch.output_file_id) == ["id-2"]
    errors = await room.read(batch.error_file_id)
    assert [(line["custom_id"], line["error"]["code"]) for line in errors] == [
        (f"id-{n}", "batch_expired") for n in (0, 1, 3)
    ]


async def test_answers_are_found_by_position_and_name_not_by_the_order_they_came_in(room: Any) -> None:
    """python-genai #1909 ("the bug costed a lot of dollars"), curator #276: answers under another's custom_id."""
    batch_id = await room.batch(6, shard_lines=3)
    first, second = await room.lease(batch_id), await room.lease(batch_id)
    for lease, line in ((second, 5), (first, 2), (second, 3), (first, 0), (second, 4), (first, 1)):
        await room.commit(lease, [line])
    batch = await room.finalise(batch_id)
    lines = await room.read(batch.output_file_id)
    assert [(line["custom_id"], line["response"]["body"]["text"]) for line in lines] == [
        (f"id-{n}", f"answer {n} ✓") for n in range(6)
    ]


async def test_a_batch_whose_lines_are_all_answered_does_not_stay_in_finalizing(room: Any) -> None:
    """curator #287: "100 %" but never done."""
    batch_id = await room.batch(3)
    await room.answer_all(batch_id, failed=[1])
    assert (await room.finalise(batch_id)).status in TERMINAL
