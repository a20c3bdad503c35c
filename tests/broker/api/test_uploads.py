"""Uploads in parts, by the stock client: any order, side by side, once; and what is left over goes away."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI
from openai.types import Upload

from broker.control.collect import Collector
from broker.control.validate import Validator
from broker.worker_objects import stored
from jobs.uploads import GRACE_US, LIFETIME_US
from tests.support.object_stores import keys_of

CONTENT = b"".join(b"%06d\n" % number for number in range(3_000))  # 21,000 bytes
PARTS = [CONTENT[:7_000], CONTENT[7_000:7_001], CONTENT[7_001:]]


@pytest.fixture
async def client(server: Any) -> AsyncIterator[AsyncOpenAI]:
    async with server.openai(await server.key("submitter"), max_retries=0) as client:
        yield client


async def pending(client: AsyncOpenAI, size: int = len(CONTENT), **options: Any) -> Upload:
    return await client.uploads.create(
        bytes=size, filename="big.jsonl", mime_type="application/jsonl", purpose="batch", **options
    )


async def sent(client: AsyncOpenAI, upload: Upload, parts: list[bytes] = PARTS) -> list[str]:
    """All parts at the same time; their ids in the order of the file."""
    made = await asyncio.gather(*(client.uploads.parts.create(upload.id, data=part) for part in parts))
    return [part.id for part in made]


async def test_parts_sent_side_by_side_become_one_file_in_the_order_that_is_named(
    client: AsyncOpenAI, server: Any
) -> None:
    upload = await pending(client)
    assert (upload.status, upload.object, upload.bytes, upload.file) == ("pending", "upload", len(CONTENT), None)
    assert upload.expires_at == upload.created_at + 3600
    last, first, middle = await sent(client, upload, [PARTS[2], PARTS[0], PARTS[1]])
    done = await client.uploads.complete(
        upload.id, part_ids=[first, middle, last], md5=hashlib.md5(CONTENT).hexdigest()
    )
    assert (done.status, done.id) == ("completed", upload.id)
    assert done.file is not None
    assert (done.file.bytes, done.file.purpose, done.file.filename) == (len(CONTENT), "batch", "big.jsonl")
    assert (await client.files.content(done.file.id)).content == CONTENT
    assert len(await keys_of(server.services.store)) == 1, "the parts are gone once they are a file"


async def test_completing_twice_or_twice_at_once_makes_one_file(client: AsyncOpenAI) -> None:
    upload = await pending(client)
    ids = await sent(client, upload)
    at_once = await asyncio.gather(*(client.uploads.complete(upload.id, part_ids=ids) for _ in range(6)))
    later = await client.uploads.complete(upload.id, part_ids=ids)
    assert {done.file.id for done in [*at_once, later] if done.file} == {later.file.id if later.file else None}
    assert len([file async for file in client.files.list()]) == 1
    with pytest.raises(openai.UnprocessableEntityError, match="another order"):
        await client.uploads.complete(upload.id, part_ids=ids[::-1])


@pytest.mark.parametrize(
    ("change", "param", "word"),
    [
        ({"part_ids": lambda ids: ids[:2]}, "part_ids", "announced 21000"),
        ({"part_ids": lambda ids: [*ids[:2], "part_none"]}, "part_ids", "part_none"),
        ({"part_ids": lambda ids: [*ids, ids[0]]}, "part_ids", "twice"),
        ({"part_ids": lambda ids: ids[::-1], "md5": hashlib.md5(CONTENT).hexdigest()}, "md5", "order of part_ids"),
        ({"md5": "no"}, "md5", "32 hexadecimal digits"),
    ],
)
async def test_a_wrong_completion_names_what_is_wrong_and_can_be_mended(
    client: AsyncOpenAI, change: dict[str, Any], param: str, word: str
) -> None:
    upload = await pending(client)
    ids = await sent(client, upload)
    asked = {"part_ids": change.get("part_ids", list)(ids)} | ({"md5": change["md5"]} if "md5" in change else {})
    with pytest.raises(openai.BadRequestError, match=word) as refused:
        await client.uploads.complete(upload.id, **asked)
    assert refused.value.param == param
    mended = await client.uploads.complete(upload.id, part_ids=ids, md5=hashlib.md5(CONTENT).hexdigest())
    assert mended.status == "completed"


async def test_a_cancelled_or_completed_upload_takes_no_more_parts(client: AsyncOpenAI, server: Any) -> None:
    upload = await pending(client)
    ids = await sent(client, upload)
    for _ in range(2):
        assert (await client.uploads.cancel(upload.id)).status == "cancelled"
    assert await keys_of(server.services.store) == set()
    done = await pending(client)
    await client.uploads.complete(done.id, part_ids=await sent(client, done))
    for over in (upload, done):
        with pytest.raises(openai.UnprocessableEntityError, match="only a pending upload"):
            await client.uploads.parts.create(over.id, data=b"x")
    with pytest.raises(openai.UnprocessableEntityError, match="cancelled"):
        await client.uploads.complete(upload.id, part_ids=ids)
    with pytest.raises(openai.UnprocessableEntityError, match="completed"):
        await client.uploads.cancel(done.id)


async def test_after_an_hour_an_upload_has_expired_and_its_bytes_are_collected(
    client: AsyncOpenAI, server: Any
) -> None:
    upload = await pending(client)
    ids = await sent(client, upload)
    kept = await pending(client)
    file = (await client.uploads.complete(kept.id, part_ids=await sent(client, kept))).file
    server.services.database.clock_offset_us = LIFETIME_US
    with pytest.raises(openai.UnprocessableEntityError, match="expired"):
        await client.uploads.complete(upload.id, part_ids=ids)
    await Collector(server.services).step()
    assert len(await keys_of(server.services.store)) == 4, (
        "who began to complete it in time may still be reading the parts"
    )
    server.services.database.clock_offset_us = LIFETIME_US + GRACE_US
    await Collector(server.services).step()
    assert file is not None
    assert (await client.files.content(file.id)).content == CONTENT
    assert len(await keys_of(server.services.store)) == 1
    with pytest.raises(openai.UnprocessableEntityError, match="expired"):
        await client.uploads.cancel(upload.id)


async def test_what_a_crash_left_without_a_row_is_collected(client: AsyncOpenAI, server: Any) -> None:
    """The broker died after it had written a part, or the whole file, and before it said so in the database."""
    upload = await pending(client)
    await server.services.store.put(f"default/uploads/{upload.id}/part_X", b"x")
    await server.services.store.put(f"default/uploads/{upload.id}/file-x", b"x")
    server.services.database.clock_offset_us = LIFETIME_US + GRACE_US
    await Collector(server.services).step()
    assert await keys_of(server.services.store) == set()


async def test_what_a_late_attempt_to_complete_wrote_after_the_file_was_deleted_is_collected(
    client: AsyncOpenAI, server: Any
) -> None:
    """Two attempts at once: one made the file, it was deleted, and then the other one's object arrived."""
    upload = await pending(client)
    file = (await client.uploads.complete(upload.id, part_ids=await sent(client, upload))).file
    (key,) = await keys_of(server.services.store)
    assert file is not None
    await client.files.delete(file.id)
    assert await keys_of(server.services.store) == set()
    await stored(server.services).put(key, CONTENT)
    server.services.database.clock_offset_us = LIFETIME_US + GRACE_US
    await Collector(server.services).step()
    assert await keys_of(server.services.store) == set()


async def test_a_file_that_has_expired_loses_its_bytes_but_not_while_a_batch_reads_it(
    client: AsyncOpenAI, server: Any, input_lines: Any
) -> None:
    policy: Any = {"anchor": "created_at", "seconds": 3600}
    lonely = await client.files.create(file=b"x", purpose="batch", expires_after=policy)
    read = await client.files.create(file=input_lines(1), purpose="batch", expires_after=policy)
    batch = await client.batches.create(input_file_id=read.id, endpoint="/v1/chat/completions", completion_window="24h")
    assert batch.status == "validating"
    server.services.database.clock_offset_us = LIFETIME_US
    await Collector(server.services).step()
    assert await keys_of(server.services.store) == {f"default/files/{read.id}"}
    with pytest.raises(openai.NotFoundError, match="expired"):
        await client.files.content(lonely.id)


async def test_an_upload_is_limited_by_what_it_announced(client: AsyncOpenAI, server: Any) -> None:
    with pytest.raises(openai.BadRequestError, match="max_upload_bytes") as large:
        await pending(client, size=server.services.settings.jobs.max_upload_bytes + 1)
    assert large.value.param == "bytes"
    upload = await pending(client, size=100)
    with pytest.raises(openai.APIStatusError) as part:
        await client.uploads.parts.create(upload.id, data=b"x" * 101)
    assert part.value.status_code == 413
    for _ in range(3):
        await client.uploads.parts.create(upload.id, data=b"x" * 100)
    with pytest.raises(openai.BadRequestError, match="announced 100 bytes"):
        await client.uploads.parts.create(upload.id, data=b"x")
    assert len(await keys_of(server.services.store)) == 3


@pytest.mark.parametrize(
    "wrong", [{"purpose": "fine-tune"}, {"bytes": 0}, {"expires_after": {"anchor": "created_at", "seconds": 1}}]
)
async def test_a_wrong_announcement_names_its_parameter(client: AsyncOpenAI, wrong: dict[str, Any]) -> None:
    asked = {"bytes": 1, "filename": "a", "mime_type": "text/plain", "purpose": "batch", **wrong}
    with pytest.raises(openai.BadRequestError) as refused:
        await client.uploads.create(**asked)
    assert str(refused.value.param).startswith(next(iter(wrong)))


async def test_input_files_expire_after_thirty_days_unless_told_otherwise(client: AsyncOpenAI) -> None:
    """As at OpenAI for files of purpose batch, however they came."""
    upload = await pending(client)
    file = (await client.uploads.complete(upload.id, part_ids=await sent(client, upload))).file
    assert file is not None
    assert file.expires_at == file.created_at + 2_592_000
    whole = await client.files.create(file=b"x", purpose="batch")
    assert whole.expires_at == whole.created_at + 2_592_000
    short = await pending(client, expires_after={"anchor": "created_at", "seconds": 3600})
    file = (await client.uploads.complete(short.id, part_ids=await sent(client, short))).file
    assert file is not None
    assert file.expires_at == file.created_at + 3600


async def test_a_file_that_came_in_parts_may_be_larger_than_one_that_came_at_once(
    client: AsyncOpenAI, server: Any, input_lines: Any
) -> None:
    """The test's limit for one request is 1 MiB."""
    content = input_lines(10_000)
    assert len(content) > server.services.settings.jobs.max_file_bytes
    upload = await client.uploads.upload_file_chunked(
        file=content, filename="a.jsonl", bytes=len(content), mime_type="text/plain", purpose="batch", part_size=500_000
    )
    assert upload.file is not None
    batch = await client.batches.create(
        input_file_id=upload.file.id,
        endpoint="/v1/chat/completions",
        completion_window="24h",
        extra_body={"x_broker": {"on_infeasible": "queue"}},
    )
    await Validator(server.services).step()
    validated = await client.batches.retrieve(batch.id)
    assert (validated.status, validated.request_counts.total if validated.request_counts else 0) == (
        "in_progress",
        10_000,
    )


async def test_a_crash_between_a_joined_file_and_its_row_is_made_good_by_completing_again(
    client: AsyncOpenAI, server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(point: str) -> None:
        assert point == "upload.before_txn"
        raise OSError("the disk went away")

    upload = await pending(client)
    parts = await sent(client, upload)
    monkeypatch.setattr(server.services.failpoints, "reached", crash)
    with pytest.raises(openai.InternalServerError):
        await client.uploads.complete(upload.id, part_ids=parts)
    monkeypatch.undo()
    done = await client.uploads.complete(upload.id, part_ids=parts)
    assert done.file is not None
    assert (await client.files.content(done.file.id)).content == CONTENT
    assert len(await keys_of(server.services.store)) == 1
