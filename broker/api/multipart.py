"""Multipart bodies, streamed: the stock clients send the file before or after the other fields, with or without a length.

The Python client sends `purpose` first and a Content-Length; the Node client sends `file` first, chunked, without one
(research/api_worker.md §1.2). So the file goes to the store before its purpose is known, and its bytes are counted here:
aiohttp's `client_max_size` does not apply to `multipart()` (measured, 3.14.5).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

from aiohttp import BodyPartReader, MultipartReader, web
from aiohttp.http_exceptions import HttpProcessingError

from broker.api.problems import Problem, bad_request
from jobs.objects import Stored

CHUNK = 256 * 1024
MAX_FIELD_BYTES = 4096
MAX_PARTS = 16

Store = Callable[[AsyncIterator[bytes]], Awaitable[Stored]]


@dataclass(slots=True)
class Form:
    """What was received so far; `stored` is set once the whole file is in the store.

    `file_field` names the part that is the file, `max_bytes` is how long it may be, and `limit_name` what sets that.
    """

    file_field: str
    max_bytes: int
    limit_name: str
    fields: dict[str, str] = field(default_factory=dict)
    filename: str = ""
    stored: Stored | None = None


async def receive(request: web.Request, form: Form, store: Store) -> Stored:
    """Read the request into `form`, streaming its file through `store`; what was stored.

    `form` is filled as it goes, so that the caller knows what to clean up when this raises: 400 for a malformed form,
    413 for a file larger than `max_bytes`.
    """
    if request.content_length is not None and request.content_length > form.max_bytes + CHUNK:
        # Said before the first byte is read: the client need not send it all.
        raise _too_large(form)
    try:
        await _read(await request.multipart(), form, store)
    except (ValueError, AssertionError, HttpProcessingError) as error:
        # What aiohttp's reader raises for a missing boundary, a bad part header, a body that ends too early.
        raise bad_request("invalid_multipart", f"The form could not be read: {str(error)[:200]}") from error
    if form.stored is None:
        message = f"The form has no part named `{form.file_field}`."
        raise bad_request("missing_required_parameter", message, form.file_field)
    return form.stored


async def _read(reader: MultipartReader, form: Form, store: Store) -> None:
    count = 0
    while (part := await reader.next()) is not None:
        count += 1
        if count > MAX_PARTS or not isinstance(part, BodyPartReader):
            raise bad_request("invalid_multipart", f"The form is nested or has more than {MAX_PARTS} parts.")
        if part.headers.get("Content-Encoding", "identity") != "identity":
            raise Problem(415, "unsupported_encoding", "Parts are taken as they are; send no Content-Encoding.")
        if part.name == form.file_field:
            await _file(part, form, store)
        else:
            form.fields[part.name or ""] = await _text(part)


async def _file(part: BodyPartReader, form: Form, store: Store) -> None:
    if form.stored is not None:
        message = f"The form has more than one part named `{form.file_field}`."
        raise bad_request("invalid_multipart", message, form.file_field)
    form.filename = part.filename or "upload"
    form.stored = await store(_limited(part, form))


async def _limited(part: BodyPartReader, form: Form) -> AsyncIterator[bytes]:
    size = 0
    while chunk := await part.read_chunk(CHUNK):
        size += len(chunk)
        if size > form.max_bytes:
            raise _too_large(form)
        yield bytes(chunk)


async def _text(part: BodyPartReader) -> str:
    raw = bytearray()
    while chunk := await part.read_chunk(MAX_FIELD_BYTES):
        raw += chunk
        if len(raw) > MAX_FIELD_BYTES:
            raise bad_request(
                "invalid_multipart", f"The part {part.name!r} is longer than {MAX_FIELD_BYTES} bytes.", part.name
            )
    text = raw.decode()
    if "\x00" in text:
        raise bad_request("invalid_text", f"The part {part.name!r} contains a NUL character.", part.name)
    return text


def _too_large(form: Form) -> Problem:
    message = f"`{form.file_field}` is larger than {form.max_bytes} bytes ({form.limit_name})."
    return Problem(413, "file_too_large", message, param=form.file_field)
