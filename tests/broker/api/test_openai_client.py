"""The stock `openai` client, unmodified, with only its base_url changed."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI

from broker.control.finalise import Finaliser


@pytest.fixture
async def client(server: Any) -> AsyncIterator[AsyncOpenAI]:
    async with server.openai(await server.key("submitter")) as client:
        yield client


async def test_files_go_up_and_come_back(client: AsyncOpenAI, input_lines: Any) -> None:
    content = input_lines(3)
    file = await client.files.create(file=("prompts.jsonl", content), purpose="batch")
    assert (file.object, file.bytes, file.filename, file.purpose) == ("file", len(content), "prompts.jsonl", "batch")
    assert (await client.files.retrieve(file.id)).id == file.id
    assert (await client.files.content(file.id)).content == content
    async with client.files.with_streaming_response.content(file.id) as streamed:
        assert await streamed.read() == content
    assert (await client.files.delete(file.id)).deleted
    with pytest.raises(openai.NotFoundError) as gone:
        await client.files.retrieve(file.id)
    assert gone.value.code == "file_gone"


async def test_a_file_may_expire(client: AsyncOpenAI, input_lines: Any) -> None:
    file = await client.files.create(
        file=io.BytesIO(input_lines(1)), purpose="batch", expires_after={"anchor": "created_at", "seconds": 3600}
    )
    assert file.expires_at == file.created_at + 3600
    with pytest.raises(openai.BadRequestError) as refused:
        await client.files.create(
            file=io.BytesIO(b"{}"), purpose="batch", expires_after={"anchor": "created_at", "seconds": 1}
        )
    assert refused.value.param == "expires_after[seconds]"


async def test_a_batch_is_created_read_listed_and_cancelled(client: AsyncOpenAI, server: Any, input_lines: Any) -> None:
    file = await client.files.create(file=io.BytesIO(input_lines(2)), purpose="batch")
    batch = await client.batches.create(
        input_file_id=file.id,
        endpoint="/v1/chat/completions",
        completion_window="24h",
        metadata={"run": "a"},
        extra_body={"x_broker": {"residency": ["DE"], "max_usd": "4.5", "priority": 3, "tags": {"team": "x"}}},
    )
    assert (batch.status, batch.input_file_id, batch.metadata) == ("validating", file.id, {"run": "a"})
    assert batch.expires_at == batch.created_at + 86_400
    ours = batch.model_extra["x_broker"]
    assert (ours["residency"], ours["max_usd"], ours["priority"], ours["tags"]) == (["DE"], "4.5", 3, {"team": "x"})
    assert ours["phase"] == "queued"
    assert server.services.wake["validate"].is_set(), "the validate loop is told at once"
    again = await client.batches.retrieve(batch.id)
    assert again.id == batch.id
    cancelled = await client.batches.cancel(batch.id)
    assert cancelled.status in ("cancelling", "cancelled")
    assert server.services.wake["finalise"].is_set()
    await Finaliser(server.services).step()
    ended = await client.batches.retrieve(batch.id)
    assert ended.status == "cancelled"
    assert ended.model_extra["x_broker"]["phase"] == "ended"


async def test_lists_page_through_everything_once_newest_first(client: AsyncOpenAI, input_lines: Any) -> None:
    file = await client.files.create(file=io.BytesIO(input_lines(1)), purpose="batch")
    made = []
    for number in range(5):
        batch = await client.batches.create(
            input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h", metadata={"n": str(number)}
        )
        made.append(batch.id)
    seen = [batch.id async for batch in client.batches.list(limit=2)]
    assert seen == made[::-1]
    page = await client.batches.list(limit=2, after=made[3])
    assert ([each.id for each in page.data], page.has_more) == ([made[2], made[1]], True)
    files = [await client.files.create(file=io.BytesIO(b"x"), purpose="batch") for _ in range(3)]
    assert [each.id async for each in client.files.list(limit=2)] == [each.id for each in files[::-1]] + [file.id]
    assert [each.id async for each in client.files.list(purpose="batch_output")] == []
    assert [each.id async for each in client.files.list(limit=2, order="asc")] == [file.id, *(f.id for f in files)]


async def test_a_list_that_is_deleted_while_it_is_read_is_read_to_its_end(client: AsyncOpenAI) -> None:
    files = [await client.files.create(file=io.BytesIO(b"x"), purpose="batch") for _ in range(5)]
    seen = []
    async for each in client.files.list(limit=2):
        await client.files.delete(each.id)
        seen.append(each.id)
    assert seen == [each.id for each in files[::-1]]


async def test_a_list_after_nothing_is_an_error_and_not_an_empty_page(client: AsyncOpenAI, server: Any) -> None:
    theirs = (await server.new_batch())["id"]  # of the project `default`, as ours
    async with server.openai(await server.key("submitter", project="mine")) as stranger:
        for asked in (
            client.files.list(after="file-none"),
            client.batches.list(after="x"),
            stranger.batches.list(after=theirs),
        ):
            with pytest.raises(openai.BadRequestError) as refused:
                await asked
            assert (refused.value.param, refused.value.code) == ("after", "invalid_cursor")


async def test_models_are_listed_and_read(client: AsyncOpenAI) -> None:
    models = [model.id async for model in client.models.list()]
    assert "tiny" in models
    model = await client.models.retrieve("tiny")
    assert model.model_extra["x_broker"]["engine"] == "url"
    assert model.model_extra["x_broker"]["offers"] == 0
    with pytest.raises(openai.NotFoundError) as missing:
        await client.models.retrieve("org/nobody-has-this")
    assert missing.value.code == "model_not_found"
    assert "org/nobody-has-this" in missing.value.message


async def test_errors_are_the_clients_typed_exceptions(client: AsyncOpenAI, server: Any, input_lines: Any) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        await client.batches.retrieve("batch_nope")
    assert missing.value.code == "batch_not_found"
    with pytest.raises(openai.NotFoundError) as no_file:
        await client.batches.create(input_file_id="file-none", endpoint="/v1/embeddings", completion_window="24h")
    assert no_file.value.code == "file_not_found"
    async with server.openai("brk_wrong", max_retries=0) as stranger:
        with pytest.raises(openai.AuthenticationError):
            await stranger.models.list()
    async with server.openai(await server.key("viewer")) as viewer:
        with pytest.raises(openai.PermissionDeniedError):
            await viewer.files.create(file=io.BytesIO(b"x"), purpose="batch")
    with pytest.raises(openai.BadRequestError) as purpose:
        await client.files.create(file=io.BytesIO(b"x"), purpose="fine-tune")
    assert purpose.value.param == "purpose"
    file = await client.files.create(file=io.BytesIO(input_lines(1)), purpose="batch")
    for extra, param in (
        ({"residency": ["Atlantis"]}, "x_broker.residency"),
        ({"deadline": 1}, "x_broker.deadline"),
        ({"max_usd": "much"}, "x_broker.max_usd"),
    ):
        with pytest.raises(openai.BadRequestError) as refused:
            await client.batches.create(
                input_file_id=file.id,
                endpoint="/v1/chat/completions",
                completion_window="24h",
                extra_body={"x_broker": extra},
            )
        assert refused.value.param == param
    assert "Atlantis" in str(
        (await server.call("POST", "/v1/batches", json={"input_file_id": file.id, "endpoint": "/v1/chat/completions",
         "x_broker": {"residency": ["Atlantis"]}})).json
    )  # fmt: skip


async def test_a_conflict_is_not_sent_again(server: Any, input_lines: Any) -> None:
    """422 and `x-should-retry: false`: the client gives up at once, with its typed exception."""
    async with server.openai(await server.key("submitter"), max_retries=5) as client:
        file = await client.files.create(file=io.BytesIO(input_lines(1)), purpose="batch")
        create = client.batches.create
        await create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h",
                     extra_headers={"Idempotency-Key": "k"})  # fmt: skip
        with pytest.raises(openai.UnprocessableEntityError) as refused:
            await create(input_file_id=file.id, endpoint="/v1/completions", completion_window="24h",
                         extra_headers={"Idempotency-Key": "k"})  # fmt: skip
    assert refused.value.code == "idempotency_mismatch"
    assert refused.value.response.headers["x-should-retry"] == "false"
    async with server.openai(await server.key("submitter"), max_retries=0) as client:
        with pytest.raises(openai.UnprocessableEntityError) as used:
            await client.files.delete(file.id)
    assert used.value.code == "invalid_state"
