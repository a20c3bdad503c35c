"""Files and batches: creating once, finding again, beginning, failing, cancelling, expiring."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from jobs import batches, files, ids, outbox
from jobs.errors import (
    BadBatch,
    BadTransition,
    BatchNotFound,
    FileGone,
    FileNotFound,
    IdempotencyMismatch,
)
from jobs.tables import Batch, File
from jobs.types import Finding
from jobs.window import expires_us, window_s
from tests.support.databases import until_it_waits

HOUR_US = 3_600_000_000


async def create(room: Any, new: batches.NewBatch) -> tuple[Batch, bool]:
    async with room.database.transaction() as session:
        return await batches.create(session, new)


async def count(room: Any) -> int:
    async with room.database.transaction() as session:
        return len(await batches.list_batches(session, None, limit=100))


# --- creating --------------------------------------------------------------------------------------------------------


async def test_a_batch_expires_at_the_earlier_of_window_and_deadline(room: Any) -> None:
    file = await room.upload(b"{}")
    by_window = await room.create(file, completion_window="2h")
    assert by_window.expires_us == by_window.created_us + 2 * HOUR_US
    deadline = by_window.created_us + HOUR_US
    by_deadline = await room.create(file, completion_window="2h", deadline_us=deadline)
    assert by_deadline.expires_us == deadline


@pytest.mark.parametrize(("window", "seconds"), [("90m", 5_400), ("24h", 86_400), ("7d", 604_800), ("30d", 2_592_000)])
def test_a_window_is_minutes_hours_or_days(window: str, seconds: int) -> None:
    assert window_s(window) == seconds


@pytest.mark.parametrize(
    "window", ["", "24", "h", "1.5h", "-1h", "0h", "31d", "24H", "24h ", "1w", "٣h", "9" * 99 + "h"]
)
def test_any_other_window_is_refused_by_name(window: str) -> None:
    with pytest.raises(BadBatch, match="completion_window"):
        window_s(window)


def test_a_deadline_in_the_past_is_refused() -> None:
    with pytest.raises(BadBatch, match="deadline 1 is not after now"):
        expires_us(2_000_000, "1h", 1_000_000)


BAD = [
    ({"endpoint": "/v1/images/generations"}, "endpoint"),
    ({"completion_window": "soon"}, "completion_window"),
    ({"metadata": {str(n): "x" for n in range(17)}}, "metadata"),
    ({"metadata": {"k" * 65: "x"}}, "metadata"),
    ({"metadata": {"k": "x" * 513}}, "metadata"),
]


@pytest.mark.parametrize(("changes", "param"), BAD)
async def test_a_bad_request_names_its_parameter_and_creates_nothing(room: Any, changes: Any, param: str) -> None:
    file = await room.upload(b"{}")
    with pytest.raises(BadBatch) as refused:
        await room.create(file, **changes)
    assert refused.value.param == param
    assert await count(room) == 0


async def test_openai_s_metadata_limits_are_within_bounds(room: Any) -> None:
    file = await room.upload(b"{}")
    metadata = {str(n) + "k" * 62: "x" * 512 for n in range(10, 26)}
    assert (await room.create(file, metadata=metadata)).metadata_ == metadata


async def test_an_input_is_this_project_s_batch_file(room: Any) -> None:
    file = await room.upload(b"{}")
    with pytest.raises(FileNotFound):
        await room.create(file, project="other")
    with pytest.raises(FileNotFound):
        await room.create(file, input_file_id="file-none")
    batch_id = await room.batch(1, shard_lines=1)
    await room.answer_all(batch_id)
    finished = await room.finalise(batch_id)
    with pytest.raises(BadBatch, match="batch_output"):
        await room.create(file, input_file_id=finished.output_file_id)


async def test_the_same_key_and_request_is_the_same_batch(room: Any) -> None:
    file = await room.upload(b"{}")
    first, was_new = await create(room, room.new(file, idempotency_key="k"))
    second, again = await create(room, room.new(file, idempotency_key="k"))
    assert (second.id, was_new, again) == (first.id, True, False)
    assert await count(room) == 1


async def test_the_same_key_with_another_request_is_refused(room: Any) -> None:
    file = await room.upload(b"{}")
    await create(room, room.new(file, idempotency_key="k"))
    with pytest.raises(IdempotencyMismatch, match="'k'"):
        await create(room, room.new(file, idempotency_key="k", wishes={"max_usd": "1"}))


async def test_a_key_belongs_to_its_project(room: Any) -> None:
    file = await room.upload(b"{}")
    await create(room, room.new(file, idempotency_key="k"))
    with pytest.raises(FileNotFound):
        await create(room, room.new(file, idempotency_key="k", project="other"))


async def test_a_retry_of_the_sdk_is_the_same_batch_for_fifteen_minutes(room: Any) -> None:
    """Neither SDK sends an idempotency key, and both repeat a request whose answer was lost."""
    file = await room.upload(b"{}")
    first, _ = await create(room, room.new(file))
    assert (await create(room, room.new(file, retry_count=1)))[0].id == first.id
    assert (await create(room, room.new(file, retry_count=1, principal="bob")))[1], "another person's request"
    assert (await create(room, room.new(file, retry_count=1, metadata={"a": "b"})))[1], "another request"
    assert (await create(room, room.new(file)))[1], "asked for again on purpose"
    room.clock(15 * 60 + 1)
    assert (await create(room, room.new(file, retry_count=1)))[1]


# --- reading ---------------------------------------------------------------------------------------------------------


async def test_batches_are_listed_newest_first_in_pages(room: Any) -> None:
    file = await room.upload(b"{}")
    made = [(await room.create(file)).id for _ in range(5)]
    seen: list[str] = []
    more, after = True, None
    while more:
        async with room.database.transaction() as session:
            page = await batches.list_batches(session, "acme", after=after, limit=2)
        seen += [batch.id for batch in page]
        more, after = page.has_more, seen[-1]
    assert seen == made[::-1]


async def test_another_project_s_batch_is_not_found(room: Any) -> None:
    batch_id = await room.batch(1)
    async with room.database.transaction() as session:
        with pytest.raises(BatchNotFound):
            await batches.get(session, "other", batch_id)
        with pytest.raises(BatchNotFound):
            await batches.cancel(session, "other", batch_id)
        assert await batches.list_batches(session, "other") == []


async def test_files_are_listed_until_deleted_or_expired(room: Any) -> None:
    first, second = await room.upload(b"1"), await room.upload(b"2")
    async with room.database.transaction() as session:
        short = await files.create(
            session,
            file_id=ids.file_id(),
            project="acme",
            purpose="batch",
            filename="f",
            size=1,
            sha256="0" * 64,
            object_key="acme/files/x",
            expires_us=second.created_us + 60_000_000,
        )
        page = await files.list_files(session, "acme", purpose="batch", limit=2)
        assert ([file.id for file in page], page.has_more) == ([short.id, second.id], True)
    room.clock(61)
    async with room.database.transaction() as session:
        with pytest.raises(FileGone, match="expired"):
            await files.get(session, "acme", short.id)
        await files.delete(session, "acme", first.id)
    async with room.database.transaction() as session:
        assert [file.id for file in await files.list_files(session, "acme")] == [second.id]
        assert await files.list_files(session, "acme", purpose="batch_output") == []
        with pytest.raises(FileGone, match="deleted"):
            await files.get(session, "acme", first.id)
        with pytest.raises(FileNotFound):
            await files.get(session, "other", second.id)


async def test_the_input_of_a_running_batch_cannot_be_deleted(room: Any) -> None:
    batch_id = await room.batch(1)
    file_id = (await room.get(batch_id)).input_file_id
    async with room.database.transaction() as session:
        with pytest.raises(BadTransition, match=batch_id):
            await files.delete(session, "acme", file_id)
    await room.answer_all(batch_id)
    await room.finalise(batch_id)
    async with room.database.transaction() as session:
        assert (await files.delete(session, "acme", file_id)).deleted_us is not None


async def test_of_a_batch_and_the_deletion_of_its_input_at_once_the_first_wins(room: Any) -> None:
    async def delete(file: File) -> None:
        async with room.database.transaction() as session:
            await files.delete(session, "acme", file.id)

    file = await room.upload(b"{}")
    async with room.database.transaction() as session:
        batch, _ = await batches.create(session, room.new(file))
        deletion = asyncio.create_task(delete(file))
        await until_it_waits(room.database, deletion)
    with pytest.raises(BadTransition, match=batch.id):
        await deletion
    file = await room.upload(b"{}")
    async with room.database.transaction() as session:
        await files.delete(session, "acme", file.id)
        creation = asyncio.create_task(create(room, room.new(file)))
        await until_it_waits(room.database, creation)
    with pytest.raises(FileGone):
        await creation


# --- moving ----------------------------------------------------------------------------------------------------------


async def test_beginning_twice_inserts_the_shards_once(room: Any) -> None:
    batch_id = await room.batch(6)
    file_id = (await room.get(batch_id)).input_file_id
    async with room.database.transaction() as session:
        file = await files.get(session, "acme", file_id)
    validation = await room.validated(file, 3)
    async with room.database.transaction() as session:
        batch = await batches.begin(session, batch_id, validation)
        assert (batch.status, batch.total) == ("in_progress", 6)
        assert (await batches.progress(session, [batch_id]))[batch_id].shards == 2


async def test_a_batch_that_fails_validation_says_why(room: Any) -> None:
    file = await room.upload(b"{}")
    batch = await room.create(file)
    finding = Finding(code="invalid_json_line", message="broken", line=3)
    async with room.database.transaction() as session:
        failed = await batches.fail(session, batch.id, [finding], total=7)
    assert (failed.status, failed.errors_total) == ("failed", 7)
    assert failed.errors == [{"code": "invalid_json_line", "message": "broken", "line": 3, "param": None}]
    assert failed.failed_us is not None
    async with room.database.transaction() as session:
        again = await batches.fail(session, batch.id, [Finding(code="other", message="later")])
    assert again.errors == failed.errors, "a terminal batch never changes"


async def test_a_validation_that_ends_after_the_cancellation_starts_nothing(room: Any) -> None:
    file = await room.upload(b"".join([]) + b"{}")
    batch = await room.create(file)
    await room.cancel(batch.id)
    async with room.database.transaction() as session:
        await batches.fail(session, batch.id, [Finding(code="x", message="x")])
    assert await room.advance() == [batch.id]
    cancelled = await room.finalise(batch.id)
    assert (cancelled.status, cancelled.output_file_id, cancelled.error_file_id) == ("cancelled", None, None)


async def test_cancelling_twice_is_one_cancellation(room: Any) -> None:
    batch_id = await room.batch(3)
    first = await room.cancel(batch_id)
    room.clock(5)
    second = await room.cancel(batch_id)
    assert (second.status, second.cancelling_us, second.version) == ("cancelling", first.cancelling_us, first.version)


async def test_an_ended_batch_cannot_be_cancelled(room: Any) -> None:
    batch_id = await room.batch(3)
    await room.answer_all(batch_id)
    with pytest.raises(BadTransition, match="finalizing"):
        await room.cancel(batch_id)
    await room.finalise(batch_id)
    with pytest.raises(BadTransition, match="completed"):
        await room.cancel(batch_id)


async def test_only_what_is_due_expires(room: Any) -> None:
    late, other = await room.batch(3, completion_window="10m"), await room.batch(3)
    assert await room.advance() == []
    room.clock(600)
    assert await room.advance() == [late]
    assert await room.advance() == [], "once"
    async with room.database.transaction() as session:
        assert await batches.closed_batches(session) == [late]
        assert [batch.id for batch in await batches.active_batches(session)] == [late, other]
        assert [batch.id for batch in await batches.active_batches(session, ["in_progress"])] == [other]


async def test_events_are_delivered_until_confirmed(room: Any) -> None:
    batch_id = await room.batch(3)
    async with room.database.transaction() as session:
        first = await outbox.undelivered(session)
    async with room.database.transaction() as session:
        again = await outbox.undelivered(session)
        assert [event.id for event in again] == [event.id for event in first], "a relay that died sees them again"
        await outbox.delivered(session, [event.id for event in again[:1]], 1)
    async with room.database.transaction() as session:
        (left,) = await outbox.undelivered(session)
    assert (left.kind, left.batch_id, left.payload["to"]) == ("batch.in_progress", batch_id, "in_progress")


def test_ids_sort_in_the_order_they_were_made() -> None:
    made = [ids.batch_id() for _ in range(1_000)]
    assert made == sorted(set(made))
