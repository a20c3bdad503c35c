"""Getting bytes out of the broker, of any length: resumed where they broke off, whole or not at all on disk."""

from __future__ import annotations

import asyncio
import glob
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Protocol

from broker.cli.client import CHUNK_BYTES, RETRY_WAITS_S, ApiFailure, BrokerUnreachable, Client, Query
from broker.cli.exits import Failure
from broker.cli.output import is_terminal, progress


class Sink(Protocol):
    """Where the bytes go. `size` of them are there, of the state that `etag` names (None: none yet). `is_quiet`: a
    progress bar would stand among them."""

    size: int
    etag: str | None
    is_quiet: bool

    def begin(self, etag: str | None) -> None:
        """What follows is of the state `etag`, from its first byte. Raises Failure when that cannot be done any more."""

    def write(self, chunk: bytes) -> None: ...


async def download(client: Client, path: str, query: Query, sink: Sink) -> None:
    """Fill `sink` with the answer. A connection that breaks is taken up where it broke, as long as the content is the
    same; else it begins again. Raises BrokerUnreachable when several attempts in a row bring nothing."""
    waits = iter(RETRY_WAITS_S)
    while True:
        had = sink.size
        try:
            return await _attempt(client, path, query, sink)
        except BrokerUnreachable:
            waits = iter(RETRY_WAITS_S) if sink.size > had else waits
            wait_s = next(waits, None)
            if wait_s is None:
                raise
            await asyncio.sleep(wait_s)
        except ApiFailure as refused:
            # The range begins where the content ends: what is there cannot be the beginning of it.
            if refused.status != 416:
                raise
            sink.begin(None)


async def _attempt(client: Client, path: str, query: Query, sink: Sink) -> None:
    async with client.opened(path, query, _resuming(sink)) as answer:
        if answer.status != 206:
            sink.begin(answer.headers.get("ETag"))
        total = answer.content_length
        with progress("downloading", None if total is None else sink.size + total, sink.is_quiet) as received:
            async for chunk in answer.content.iter_chunked(CHUNK_BYTES):
                sink.write(chunk)
                received(sink.size)


def _resuming(sink: Sink) -> Mapping[str, str]:
    if not sink.size or sink.etag is None:
        return {}
    return {"Range": f"bytes={sink.size}-", "If-Range": sink.etag}


class StandardOutput:
    """Bytes that are gone once they are written."""

    def __init__(self) -> None:
        self.size = 0
        self.etag: str | None = None
        self.is_quiet = is_terminal()
        self.lines = 0

    def begin(self, etag: str | None) -> None:
        if self.size:
            raise Failure("the connection broke and the content has changed since; get it into a file, with -o FILE")
        self.etag = etag

    def write(self, chunk: bytes) -> None:
        sys.stdout.buffer.write(chunk)
        sys.stdout.buffer.flush()
        self.size += len(chunk)
        self.lines += chunk.count(b"\n")


class PartFile:
    """A file that appears under its name when it is whole. Until then it is `.NAME.ETAG.part` beside it: repeating a
    command whose download was interrupted goes on with it."""

    def __init__(self, out: Path) -> None:
        self._out = out
        self._stream: IO[bytes] | None = None
        self.size = 0
        self.etag: str | None = None
        self.is_quiet = False
        left = self._left()
        if left:
            tag = left[-1].name.removeprefix(f".{out.name}.").removesuffix(".part")
            self.etag = f'"{tag}"'
            self._stream = left[-1].open("ab")
            self.size = self._stream.tell()

    def begin(self, etag: str | None) -> None:
        self.close()
        for left in self._left():
            left.unlink()
        self.etag, self.size = etag, 0
        self._stream = self._part().open("wb")

    def write(self, chunk: bytes) -> None:
        assert self._stream
        self._stream.write(chunk)
        self.size += len(chunk)

    def publish(self) -> int:
        """Give it its name; the number of its lines."""
        self.close()
        part = self._part()
        with part.open("rb") as written:
            lines = sum(chunk.count(b"\n") for chunk in iter(lambda: written.read(CHUNK_BYTES), b""))
        part.replace(self._out)
        return lines

    def close(self) -> None:
        if self._stream:
            self._stream.close()
        self._stream = None

    def _part(self) -> Path:
        tag = "".join(each for each in self.etag or "" if each.isalnum())
        return self._out.with_name(f".{self._out.name}.{tag}.part")

    def _left(self) -> list[Path]:
        return sorted(self._out.parent.glob(f".{glob.escape(self._out.name)}.*.part"))


async def save(client: Client, path: str, query: Query, out: Path | None) -> int:
    """Download to `out` (None: standard output); the number of lines. Raises Failure when `out` cannot be written."""
    if out is None:
        stream = StandardOutput()
        await download(client, path, query, stream)
        return stream.lines
    try:
        file = PartFile(out)
        try:
            await download(client, path, query, file)
            return file.publish()
        finally:
            file.close()
    except OSError as wrong:
        raise Failure(f"{out}: cannot be written: {wrong.strerror}") from wrong
