"""Files, as at OpenAI: upload, list, read, delete. Contents are streamed both ways and never held whole."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Literal
from urllib.parse import quote

from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field

from broker.api import shapes
from broker.api.multipart import Form, receive
from broker.api.problems import Problem, bad_request
from broker.api.registry import Call, Route, route
from broker.compliance import destruction
from broker.compliance.deletion import seal_file_deletion
from broker.project_limits import project_limits
from jobs import answers, files, ids, views
from jobs.clock import MICROSECONDS, db_now
from jobs.errors import JobsError
from jobs.keys import input_key
from jobs.objects import ObjectStore, Stored
from jobs.streams import Chunks
from jobs.tables import File

MIN_EXPIRY_S, MAX_EXPIRY_S = 3_600, 2_592_000
MAX_FILE = "limit max_file_bytes; send larger files in parts, with `/v1/uploads`"


class FileQuery(BaseModel):
    """OpenAI's list parameters; others are ignored, as there."""

    model_config = ConfigDict(extra="ignore")

    after: str | None = Field(default=None, max_length=64)
    limit: int = Field(default=10_000, ge=1, le=10_000)
    purpose: str | None = Field(default=None, max_length=64)
    order: Literal["asc", "desc"] = Field(default="desc", description="by creation; desc is newest first")


async def upload_file(call: Call) -> shapes.File:
    """Upload a file of batch requests: multipart, fields `purpose` and `file` in any order."""
    store, file_id = call.services.store, ids.file_id()
    key = input_key(call.project, file_id)

    async def keep(chunks: Chunks) -> Stored:
        return await store.put_stream(key, chunks)

    async with call.services.database.transaction() as session:
        limits = await project_limits(session, call.services.settings, call.project)
    form = Form("file", limits.max_file_bytes, MAX_FILE)
    await call.services.begin_objects(call.project, file_id)
    try:
        stored = await receive(call.request, form, keep)
        file = await _record(call, file_id, form, stored)
    except (Problem, JobsError):
        # refused for certain; after a lost answer to COMMIT the row may stand, and garbage collection finds out
        if form.stored is not None:
            await store.delete(key)
        raise
    return file_shape(file)


async def _record(call: Call, file_id: str, form: Form, stored: Stored) -> File:
    purpose = form.fields.get("purpose")
    if purpose is None:
        raise bad_request(
            "missing_required_parameter", "The form has no part named `purpose`; send `batch`.", "purpose"
        )
    require_batch(purpose)
    lifetime_s = await _lifetime_s(call, form.fields)
    async with call.services.database.transaction() as session:
        await destruction.require_key(session, file_id)
        now_us = await db_now(session)
        return await files.create(
            session,
            file_id=file_id,
            project=call.project,
            purpose=purpose,
            filename=clean_name(form.filename),
            size=stored.size,
            sha256=stored.sha256,
            object_key=stored.key,
            expires_us=None if lifetime_s is None else now_us + lifetime_s * MICROSECONDS,
        )


def require_batch(purpose: str) -> None:
    """Raises 400 for a purpose that OpenAI has and a batch broker does not."""
    if purpose != "batch":
        message = f"purpose is {purpose[:64]!r}; this broker runs batches and takes files of purpose 'batch' only"
        raise bad_request("invalid_purpose", message, "purpose")


async def default_lifetime_s(call: Call, project: str) -> int | None:
    """How long an input file is kept whose owner did not say; None is until it is deleted."""
    async with call.services.database.transaction() as session:
        return (await project_limits(session, call.services.settings, project)).file_lifetime_s or None


async def _lifetime_s(call: Call, fields: dict[str, str]) -> int | None:
    """OpenAI's `expires_after[anchor]` and `expires_after[seconds]`, or the default when neither was sent."""
    anchor, seconds = fields.get("expires_after[anchor]"), fields.get("expires_after[seconds]")
    if anchor is None and seconds is None:
        return await default_lifetime_s(call, call.project)
    if anchor != "created_at":
        raise bad_request(
            "invalid_value", f"expires_after[anchor] is {anchor!r}; only 'created_at' is known", "expires_after[anchor]"
        )
    if seconds is None or not re.fullmatch(r"[0-9]{1,9}", seconds) or not MIN_EXPIRY_S <= int(seconds) <= MAX_EXPIRY_S:
        message = f"expires_after[seconds] is {seconds!r}; it must be between {MIN_EXPIRY_S} and {MAX_EXPIRY_S}"
        raise bad_request("invalid_value", message, "expires_after[seconds]")
    return int(seconds)


def clean_name(name: str) -> str:
    """A name to show, never a path: the last component, without control characters, at most 255 characters."""
    last = re.split(r"[/\\]", name)[-1]
    return "".join(each for each in last if each.isprintable())[:255] or "upload"


async def list_files(call: Call, query: FileQuery) -> shapes.FileList:
    """List files, newest first unless `order` says otherwise."""
    async with call.services.database.transaction() as session:
        page = await files.list_files(
            session,
            call.project,
            purpose=query.purpose,
            after=query.after,
            limit=query.limit,
            newest_first=query.order == "desc",
        )
    return shapes.FileList.of([file_shape(file) for file in page], has_more=page.has_more)


async def get_file(call: Call) -> shapes.File:
    """A file's size, name and purpose."""
    return file_shape(await _file(call))


async def delete_file(call: Call) -> shapes.Deleted:
    """Delete a file. Results of batches that read it stay."""
    async with call.services.database.transaction() as session:
        file = await files.delete(session, call.project, call.path("file_id"))
        await answers.forget_file(session, file.id)
        now_us = await db_now(session)
        owners = await destruction.owners_of_file(session, file)
        gone = await destruction.retire(session, call.services.secret, owners, "deleted")
        await seal_file_deletion(session, call.services.secret, file, now_us, why="asked", keys_destroyed=gone)
    call.services.forget_keys(gone)
    # After the row: an object without a row does not exist, a row without its object would be a lie.
    await call.services.store.delete(file.object_key)
    await views.drop_views_of(call.services.store, call.services.database.transaction, file)
    return shapes.Deleted(id=file.id)


async def file_content(call: Call) -> web.StreamResponse:
    """A file's bytes, streamed; `Range: bytes=a-b`, `If-Range` and `If-None-Match` are honoured."""
    file = await _file(call)
    return await serve_object(call, Content(file.object_key, file.bytes, file.sha256, file.filename))


@dataclass(frozen=True, slots=True)
class Content:
    """An immutable object to be read: `tag` names its bytes (the ETag), `filename` is what to call it."""

    key: str
    size: int
    tag: str
    filename: str
    media_type: str = "application/octet-stream"


async def serve_object(call: Call, content: Content) -> web.StreamResponse:
    """Answer a GET or HEAD with an object or a range of it. Raises Problem 416, and ObjectMissing before anything is sent."""
    etag, asked = f'"{content.tag}"', call.request.headers
    if _names(asked.get("If-None-Match", ""), etag):
        return web.Response(status=304, headers={"ETag": etag})
    headers = {
        "ETag": etag,
        "Accept-Ranges": "bytes",
        "Content-Type": content.media_type,
        "Content-Disposition": f"attachment; filename*=UTF-8''{quote(content.filename, safe='')}",
    }
    # another state than the one that was begun: the whole, or the two would be mixed (RFC 9110 §13.1.5)
    is_same = asked.get("If-Range", etag) == etag
    part = byte_range(asked.get("Range") if is_same else None, content.size)
    if part.is_partial:
        headers["Content-Range"] = f"bytes {part.start}-{part.stop - 1}/{content.size}"
    return await stream_object(call, content.key, part, headers)


def _names(header: str, etag: str) -> bool:
    """Whether an `If-None-Match` names this ETag; a weak one does too (RFC 9110 §13.1.2)."""
    return header.strip() == "*" or etag in (each.strip().removeprefix("W/") for each in header.split(","))


@dataclass(frozen=True, slots=True)
class Part:
    """Bytes [start, stop) of an object; `is_partial` when the caller asked for a range."""

    start: int
    stop: int
    is_partial: bool


def byte_range(header: str | None, size: int) -> Part:
    """The single range that a `Range` header asks for. Several ranges, or another unit, give the whole (RFC 9110 §14.2).

    >>> byte_range("bytes=2-4", 10), byte_range("bytes=-3", 10), byte_range(None, 10)
    (Part(start=2, stop=5, is_partial=True), Part(start=7, stop=10, is_partial=True), Part(start=0, stop=10, is_partial=False))
    """
    match = re.fullmatch(r"bytes=([0-9]{0,18})-([0-9]{0,18})", header or "")
    if match is None or not (match[1] or match[2]):
        return Part(0, size, False)
    if match[1]:
        start, stop = int(match[1]), min(size, int(match[2]) + 1 if match[2] else size)
    else:
        start, stop = max(0, size - int(match[2])), size
    if start >= stop:
        message = f"range {header!r} lies outside of the file's {size} bytes"
        raise Problem(416, "invalid_range", message, headers={"Content-Range": f"bytes */{size}"})
    return Part(start, stop, True)


async def stream_object(
    call: Call, key: str, part: Part, headers: dict[str, str], store: ObjectStore | None = None
) -> web.StreamResponse:
    """Answer with bytes of an object (of another store than the broker's, where one is given). The first chunk is read
    before the headers go out, so that a missing object is an error answer and not a broken stream."""
    store = store or call.services.store
    answer = web.StreamResponse(status=206 if part.is_partial else 200, headers=headers)
    answer.content_length = part.stop - part.start
    if call.request.method == "HEAD":
        await store.size(key)
        return answer
    chunks = store.stream(key, part.start, part.stop)
    first = await anext(chunks, b"")
    async with whole_or_aborted(call.request):
        await answer.prepare(call.request)
        await answer.write(first)
        async for chunk in chunks:
            await answer.write(chunk)
        await answer.write_eof()
    return answer


@asynccontextmanager
async def whole_or_aborted(request: web.Request) -> AsyncIterator[None]:
    """Once headers are out, the only honest way to say that the rest is missing is to break the connection."""
    is_whole = False
    try:
        yield
        is_whole = True
    finally:
        if not is_whole and request.transport is not None:
            request.transport.abort()


async def _file(call: Call) -> File:
    async with call.services.database.transaction() as session:
        return await files.get(session, call.project, call.path("file_id"))


def file_shape(file: File) -> shapes.File:
    """OpenAI's file object."""
    return shapes.File(
        id=file.id,
        bytes=file.bytes,
        created_at=file.created_us // MICROSECONDS,
        expires_at=None if file.expires_us is None else file.expires_us // MICROSECONDS,
        filename=file.filename,
        purpose=file.purpose,
    )


ROUTES: tuple[Route, ...] = (
    route("POST", "/v1/files", upload_file, tag="files", roles=("submitter",), consumes="multipart/form-data",
          errors=(422,)),
    route("GET", "/v1/files", list_files, tag="files", roles=("submitter", "viewer")),
    route("GET", "/v1/files/{file_id}", get_file, tag="files", roles=("submitter", "viewer")),
    route("DELETE", "/v1/files/{file_id}", delete_file, tag="files", roles=("submitter",), errors=(422,)),
    route("GET", "/v1/files/{file_id}/content", file_content, tag="files", roles=("submitter",),
          produces=("application/octet-stream",), errors=(416,)),
)  # fmt: skip
