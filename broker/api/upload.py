"""Multipart uploads, streamed: the stock clients send the file before or after the other fields, with or without a length.

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
class Upload:
    """What was received so far; `stored` is set once the whole file is in the store."""

    fields: dict[str, str] = field(default_factory=dict)
    filename: str = ""
    stored: Stored | None = None


async def receive(request: web.Request, upload: Upload, *, max_bytes: int, store: Store) -> None:
    """Read the form into `upload`, streaming the part named `file` through `store`.

    `upload` is filled as it goes, so that the caller knows what to clean up when this raises: 400 for a malformed form,
    413 for a file larger than `max_bytes`.
    """
    if request.content_length is not None and request.content_length > max_bytes + CHUNK:
        # Said before the first byte is read: the client need not send it all.
        raise too_large(max_bytes)
    try:
        await _read(await request.multipart(), upload, max_bytes, store)
    except (ValueError, AssertionError, HttpProcessingError) as error:
        # What aiohttp's reader raises for a missing boundary, a bad part header, a body that ends too early.
        raise bad_request("invalid_multipart", f"The form could not be read: {str(error)[:200]}") from error
    if upload.stored is None:
        raise bad_request("missing_required_parameter", "The form has no part named `file`.", "file")


async def _read(form: MultipartReader, upload: Upload, max_bytes: int, store: Store) -> None:
    count = 0
    while (part := await form.next()) is not None:
        count += 1
        if count > MAX_PARTS or not isinstance(part, BodyPartReader):
            raise bad_request("invalid_multipart", f"The form is nested or has more than {MAX_PARTS} parts.")
        if part.headers.get("Content-Encoding", "identity") != "identity":
            raise Problem(415, "unsupported_encoding", "Parts are taken as they are; send no Content-Encoding.")
        if part.name == "file":
            await _file(part, upload, max_bytes, store)
        else:
            upload.fields[part.name or ""] = await _text(part)


async def _file(part: BodyPartReader, upload: Upload, max_bytes: int, store: Store) -> None:
    if upload.stored is not None:
        raise bad_request("invalid_multipart", "The form has more than one part named `file`.", "file")
    upload.filename = part.filename or "upload"
    upload.stored = await store(_limited(part, max_bytes))


async def _limited(part: BodyPartReader, max_bytes: int) -> AsyncIterator[bytes]:
    size = 0
    while chunk := await part.read_chunk(CHUNK):
        size += len(chunk)
        if size > max_bytes:
            raise too_large(max_bytes)
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


def too_large(max_bytes: int) -> Problem:
    return Problem(
        413, "file_too_large", f"The file is larger than {max_bytes} bytes (setting jobs.max_file_bytes).", param="file"
    )
