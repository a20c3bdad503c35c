"""Getting a batch input to the broker: in one request, or in parts when it is large. Never held whole."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from broker.cli.client import ApiFailure, Client, Moved
from broker.cli.output import progress

if TYPE_CHECKING:
    from aiohttp import FormData

Document = dict[str, Any]
# What the broker takes as one part, as OpenAI does. A lost part costs that much to send again, not the file.
PART_BYTES = 64 * 1024 * 1024
READ_BYTES = 1024 * 1024
Sent = Callable[[int], None]


async def upload(client: Client, file: Path, *, name: str) -> Document:
    """Upload a batch input; the file object of the API is returned.

    Larger files than a part, and those that the broker's limit for one request refuses, go through `/v1/uploads`: then
    a connection that breaks costs one part, which is sent again.
    """
    with ExitStack() as opened:
        source = opened.enter_context(file.open("rb"))
        size = source.seek(0, io.SEEK_END)
        sent = opened.enter_context(progress(f"uploading {name}", size))
        if size <= PART_BYTES:
            try:
                return await client.send(
                    "/v1/files", lambda moved: _whole(source, name, size, sent, moved), again=False
                )
            except ApiFailure as refused:
                if refused.status != 413:
                    raise
        return await _in_parts(client, source, name, size, sent)


async def _in_parts(client: Client, source: IO[bytes], name: str, size: int, sent: Sent) -> Document:
    begun = {"bytes": size, "filename": name, "mime_type": "application/jsonl", "purpose": "batch"}
    async with AsyncExitStack() as stack:
        upload_id = (await client.post("/v1/uploads", begun, again=True))["id"]
        stack.push_async_callback(client.post, f"/v1/uploads/{upload_id}/cancel", {})
        parts = []
        for start in range(0, size, PART_BYTES):
            form = _part_of(source, start, min(PART_BYTES, size - start), sent)
            # Sent twice, a part is two parts, of which the file is made of the one that is named below.
            parts.append((await client.send(f"/v1/uploads/{upload_id}/parts", form, again=True))["id"])
        done = await client.post(f"/v1/uploads/{upload_id}/complete", {"part_ids": parts}, again=True)
        stack.pop_all()
    file: Document = done["file"]
    return file


def _whole(source: IO[bytes], name: str, size: int, sent: Sent, moved: Moved) -> FormData:
    form = _new_form()
    form.add_field("purpose", "batch")
    form.add_field("file", _bytes(source, 0, size, sent, moved), filename=name, content_type="application/jsonl")
    return form


def _part_of(source: IO[bytes], start: int, length: int, sent: Sent) -> Callable[[Moved], FormData]:
    def form(moved: Moved) -> FormData:
        fresh = _new_form()
        content = _bytes(source, start, length, sent, moved)
        fresh.add_field("data", content, filename="part", content_type="application/octet-stream")
        return fresh

    return form


def _new_form() -> FormData:
    from aiohttp import FormData  # noqa: PLC0415 - there already when there is a broker to send it to

    return FormData()


async def _bytes(source: IO[bytes], start: int, length: int, sent: Sent, moved: Moved) -> AsyncIterator[bytes]:
    """A stretch of the file. `sent` is told how far it is: it goes back when a stretch is sent again."""
    source.seek(start)
    done = 0
    while done < length:
        chunk = source.read(min(READ_BYTES, length - done))
        if not chunk:
            return  # the file got shorter; the broker misses the rest and says so
        done += len(chunk)
        sent(start + done)
        moved()
        yield chunk
