"""Each call of the official Python client, unmodified, by name, against a real broker with real results."""

from __future__ import annotations

import hashlib
import inspect
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import OpenAI
from openai.resources.batches import Batches
from openai.resources.files import Files
from openai.resources.models import Models
from openai.resources.uploads import Parts, Uploads

from tests.conformance.world import BAD, LINES, World, request_lines, world

CONTENT = request_lines(3)
CALLS: dict[str, Callable[[OpenAI, World], None]] = {}
RESOURCES: dict[str, type] = {
    "files": Files,
    "uploads": Uploads,
    "uploads.parts": Parts,
    "batches": Batches,
    "models": Models,
}


def call(name: str) -> Callable[[Callable[[OpenAI, World], None]], Callable[[OpenAI, World], None]]:
    def note(function: Callable[[OpenAI, World], None]) -> Callable[[OpenAI, World], None]:
        CALLS[name] = function
        return function

    return note


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with world(tmp_path_factory.mktemp("python_client")) as (found, _):
        yield found


def new_file(client: OpenAI, content: bytes = CONTENT) -> str:
    return client.files.create(file=("in.jsonl", content), purpose="batch").id


def new_upload(client: OpenAI, size: int = len(CONTENT)) -> str:
    made = client.uploads.create(bytes=size, filename="big.jsonl", mime_type="application/jsonl", purpose="batch")
    assert (made.object, made.status, made.bytes, made.file) == ("upload", "pending", size, None)
    return made.id


def new_batch(client: OpenAI, **options: Any) -> openai.types.Batch:
    file_id = new_file(client)
    return client.batches.create(
        input_file_id=file_id, endpoint="/v1/chat/completions", completion_window="24h", **options
    )


@call("files.create")
def files_create(client: OpenAI, _: World) -> None:
    file = client.files.create(
        file=io.BytesIO(CONTENT), purpose="batch", expires_after={"anchor": "created_at", "seconds": 3600}
    )
    assert (file.object, file.bytes, file.purpose, file.status) == ("file", len(CONTENT), "batch", "processed")
    assert file.expires_at == file.created_at + 3600


@call("files.retrieve")
def files_retrieve(client: OpenAI, _: World) -> None:
    made = client.files.create(file=("a name.jsonl", CONTENT), purpose="batch")
    found = client.files.retrieve(made.id)
    assert found == made
    assert found.filename == "a name.jsonl"


@call("files.list")
def files_list(client: OpenAI, _: World) -> None:
    made = [new_file(client, b"x") for _ in range(3)]
    newest = [file.id for file in client.files.list(purpose="batch", limit=1)]  # pages of one, to the end
    assert newest[:3] == made[::-1]
    oldest = [file.id for file in client.files.list(purpose="batch", order="asc", limit=2)]
    assert oldest == newest[::-1]
    assert client.files.list(limit=1).has_more is True


@call("files.content")
def files_content(client: OpenAI, ended: World) -> None:
    batch = client.batches.retrieve(ended.batch)
    assert batch.output_file_id and batch.error_file_id
    answered = [json.loads(line) for line in client.files.content(batch.output_file_id).text.splitlines()]
    assert [line["custom_id"] for line in answered] == [f"line-{n}" for n in range(LINES) if n != BAD]
    assert all(line["response"]["status_code"] == 200 and line["error"] is None for line in answered)
    with client.files.with_streaming_response.content(batch.error_file_id) as streamed:
        failed = [json.loads(line) for line in streamed.iter_lines()]
    assert [line["custom_id"] for line in failed] == [f"line-{BAD}"]


@call("files.retrieve_content")
def files_retrieve_content(client: OpenAI, _: World) -> None:
    with pytest.warns(DeprecationWarning):
        assert client.files.retrieve_content(new_file(client)) == CONTENT.decode()


@call("files.delete")
def files_delete(client: OpenAI, _: World) -> None:
    file_id = new_file(client)
    gone = client.files.delete(file_id)
    assert (gone.id, gone.object, gone.deleted) == (file_id, "file", True)
    with pytest.raises(openai.NotFoundError):
        client.files.content(file_id)


@call("files.wait_for_processing")
def files_wait(client: OpenAI, _: World) -> None:
    assert client.files.wait_for_processing(new_file(client), poll_interval=0.01).status == "processed"


@call("uploads.create")
def uploads_create(client: OpenAI, _: World) -> None:
    new_upload(client)


@call("uploads.parts.create")
def parts_create(client: OpenAI, _: World) -> None:
    upload = new_upload(client)
    part = client.uploads.parts.create(upload, data=CONTENT[:10])
    assert (part.object, part.upload_id) == ("upload.part", upload)


@call("uploads.complete")
def uploads_complete(client: OpenAI, _: World) -> None:
    upload = new_upload(client)
    last = client.uploads.parts.create(upload, data=CONTENT[10:])
    first = client.uploads.parts.create(upload, data=CONTENT[:10])
    done = client.uploads.complete(upload, part_ids=[first.id, last.id], md5=hashlib.md5(CONTENT).hexdigest())
    assert done.status == "completed"
    assert done.file and client.files.content(done.file.id).content == CONTENT
    assert client.uploads.complete(upload, part_ids=[first.id, last.id]).file == done.file


@call("uploads.cancel")
def uploads_cancel(client: OpenAI, _: World) -> None:
    assert client.uploads.cancel(new_upload(client)).status == "cancelled"


@call("uploads.upload_file_chunked")
def upload_file_chunked(client: OpenAI, _: World) -> None:
    done = client.uploads.upload_file_chunked(
        file=CONTENT, filename="a.jsonl", bytes=len(CONTENT), mime_type="text/plain", purpose="batch", part_size=100
    )
    assert done.file and client.files.content(done.file.id).content == CONTENT


@call("batches.create")
def batches_create(client: OpenAI, _: World) -> None:
    batch = new_batch(client, metadata={"a": "b"}, extra_body={"x_broker": {"priority": -3, "tags": {"team": "x"}}})
    assert (batch.object, batch.status, batch.metadata) == ("batch", "validating", {"a": "b"})
    assert batch.expires_at == batch.created_at + 86_400
    ours = (batch.model_extra or {})["x_broker"]
    assert (ours["priority"], ours["tags"]) == (-3, {"team": "x"}), "what extra_body sent comes back in model_extra"


@call("batches.retrieve")
def batches_retrieve(client: OpenAI, ended: World) -> None:
    batch = client.batches.retrieve(ended.batch)
    assert (batch.status, batch.metadata) == ("completed", {"run": "one"})
    assert batch.request_counts
    counts = batch.request_counts
    assert (counts.total, counts.completed, counts.failed) == (LINES, LINES - 1, 1)
    assert batch.usage and batch.usage.total_tokens == batch.usage.input_tokens + batch.usage.output_tokens > 0
    assert batch.created_at <= (batch.in_progress_at or 0) <= (batch.finalizing_at or 0) <= (batch.completed_at or 0)
    output = client.files.retrieve(batch.output_file_id or "")
    assert (output.purpose, output.expires_at) == ("batch_output", output.created_at + 7200)


@call("batches.list")
def batches_list(client: OpenAI, ended: World) -> None:
    made = [new_batch(client).id for _ in range(3)]
    seen = [batch.id for batch in client.batches.list(limit=2)]
    assert seen[:3] == made[::-1]
    assert seen[-1] == ended.batch
    assert len(seen) == len(set(seen))


@call("batches.cancel")
def batches_cancel(client: OpenAI, _: World) -> None:
    assert client.batches.cancel(new_batch(client).id).status in ("cancelling", "cancelled")


@call("models.list")
def models_list(client: OpenAI, ended: World) -> None:
    assert ended.model in [model.id for model in client.models.list()]


@call("models.retrieve")
def models_retrieve(client: OpenAI, ended: World) -> None:
    model = client.models.retrieve(ended.model)
    assert (model.id, model.object, model.owned_by) == (ended.model, "model", "broker")


@call("models.delete")
def models_delete(client: OpenAI, ended: World) -> None:
    """OpenAI deletes models that were fine-tuned, and no others; ours are settings, so there is nothing to delete."""
    with pytest.raises(openai.APIStatusError) as refused:
        client.models.delete(ended.model)
    assert (refused.value.status_code, refused.value.code) == (405, "method_not_allowed")
    assert client.models.retrieve(ended.model).id == ended.model


@call("errors.NotFoundError")
def not_found(client: OpenAI, _: World) -> None:
    for ask, code in (
        (lambda: client.batches.retrieve("batch_none"), "batch_not_found"),
        (lambda: client.files.retrieve("file-none"), "file_not_found"),
        (lambda: client.models.retrieve("no/such-model"), "model_not_found"),
        (lambda: client.uploads.cancel("upload_none"), "upload_not_found"),
    ):
        with pytest.raises(openai.NotFoundError) as missing:
            ask()
        assert (missing.value.code, missing.value.type) == (code, "not_found_error")


@call("errors.BadRequestError")
def bad_request(client: OpenAI, _: World) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.files.create(file=b"x", purpose="fine-tune")
    assert (refused.value.param, refused.value.type) == ("purpose", "invalid_request_error")
    with pytest.raises(openai.BadRequestError) as wish:
        new_batch(client, extra_body={"x_broker": {"residency": ["Atlantis"]}})
    assert wish.value.param == "x_broker.residency"


@call("errors.AuthenticationError")
def authentication(_: OpenAI, ended: World) -> None:
    with (
        OpenAI(base_url=ended.base_url, api_key="brk_wrong") as stranger,
        pytest.raises(openai.AuthenticationError) as refused,
    ):
        stranger.models.list()
    assert (refused.value.code, refused.value.type) == ("invalid_api_key", "authentication_error")


@call("errors.PermissionDeniedError")
def permission(_: OpenAI, ended: World) -> None:
    with (
        OpenAI(base_url=ended.base_url, api_key=ended.viewer) as viewer,
        pytest.raises(openai.PermissionDeniedError) as refused,
    ):
        viewer.files.create(file=b"x", purpose="batch")
    assert (refused.value.code, refused.value.type) == ("role_required", "permission_error")


@call("errors.UnprocessableEntityError")
def unprocessable(client: OpenAI, ended: World) -> None:
    with pytest.raises(openai.UnprocessableEntityError) as refused:
        client.batches.cancel(ended.batch)
    assert (refused.value.code, refused.value.type) == ("invalid_state", "invalid_request_error")


@call("project header")
def project_header(_: OpenAI, ended: World) -> None:
    with OpenAI(base_url=ended.base_url, api_key=ended.key, project="default", organization="org-any") as client:
        assert client.batches.retrieve(ended.batch).id == ended.batch
    with (
        OpenAI(base_url=ended.base_url, api_key=ended.key, project="other") as elsewhere,
        pytest.raises(openai.NotFoundError) as refused,
    ):
        elsewhere.batches.list()
    assert refused.value.code == "project_not_found"


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", CALLS)
def test_the_python_client_may(name: str, ended: World) -> None:
    with OpenAI(base_url=ended.base_url, api_key=ended.key, max_retries=0) as client:
        CALLS[name](client, ended)


def test_no_call_of_the_python_client_is_forgotten() -> None:
    """What the client can do with files, uploads, batches and models is what is asked above, name by name."""
    offered = {
        f"{resource}.{name}"
        for resource, cls in RESOURCES.items()
        for name, member in vars(cls).items()
        if inspect.isfunction(member) and not name.startswith("_")
    }
    asked = {name for name in CALLS if name.rpartition(".")[0] in RESOURCES}
    assert asked == offered


def test_the_client_is_the_official_one() -> None:
    """No copy of ours, no patch: it lies where packages lie."""
    assert "site-packages" in Path(inspect.getfile(OpenAI)).parts
