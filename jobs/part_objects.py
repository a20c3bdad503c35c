"""Reading part objects and input lines back, trusting nothing: size, sha256, form, line numbers, custom_ids.

A part object is gzip'd JSON Lines; each line is `workers/agent/schemas/part.line.json`. In the broker's own parts
(`FinalPart.is_own`) a line's custom_id may be null, and its error may name the line.
"""

from __future__ import annotations

import asyncio
import hashlib
import zlib
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Literal, Protocol

import msgspec

from jobs import ranges
from jobs.errors import ObjectCorrupt, ObjectMissing
from jobs.final_plan import FinalPart
from jobs.line_names import name_of
from jobs.objects import ObjectStore

# A part is cut at 4 MiB or 200 lines; even a single long answer stays far below. More is an attack.
MAX_PART_BYTES = 256 * 1024 * 1024
# A longer line is no request that anybody runs (validation's limit is far below); its custom_id is not looked for.
MAX_INPUT_LINE_BYTES = 64 * 1024 * 1024
DIGEST_BYTES = 16
UNREADABLE = bytes(DIGEST_BYTES)


class Damaged(Exception):
    """The part is not what was committed."""


class AnswerError(msgspec.Struct, frozen=True, omit_defaults=True):
    """OpenAI's error of a line. `line` (1-based) is only given where no custom_id may tell which line it is."""

    code: str
    message: str
    line: int | None = None


class AnswerResponse(msgspec.Struct, frozen=True):
    """The engine's answer; the body passes through byte for byte."""

    status_code: int
    request_id: str
    body: msgspec.Raw


class AnswerLine(msgspec.Struct, frozen=True):
    """OpenAI's output line without its id. `custom_id` is null only in the broker's own parts, for a line of which it
    could not be read."""

    custom_id: str | None
    response: AnswerResponse | None
    error: AnswerError | None


class PartLine(msgspec.Struct, frozen=True):
    idx: int
    status: Literal["completed", "failed"]
    line: AnswerLine


_part_lines = msgspec.json.Decoder(PartLine)


class InputSlice(Protocol):
    """Whole lines of an input: `lines` of them from `first_idx`, in bytes [start, stop), with this hex `sha256`."""

    @property
    def first_idx(self) -> int: ...
    @property
    def lines(self) -> int: ...
    @property
    def start(self) -> int: ...
    @property
    def stop(self) -> int: ...
    @property
    def sha256(self) -> str: ...


async def custom_ids(store: ObjectStore, input_key: str, shard: InputSlice) -> dict[int, str | None]:
    """The custom_id of each line of the shard, from the input itself; None where it cannot be read (an invalid line that
    the batch skips).

    Raises ObjectMissing, and ObjectCorrupt when these are not the lines that were validated.
    """
    digest, found = hashlib.sha256(), list[str | None]()
    async for line in _split(store.stream(input_key, shard.start, shard.stop), digest.update):
        found.append(None if line is None else name_of(line))
    if digest.hexdigest() != shard.sha256 or len(found) != shard.lines:
        raise ObjectCorrupt(
            f"object {input_key}: bytes [{shard.start}, {shard.stop}) are not those that were validated "
            f"({len(found)} lines, expected {shard.lines})"
        )
    return {shard.first_idx + n: custom_id for n, custom_id in enumerate(found)}


async def _split(chunks: AsyncIterator[bytes], seen: Callable[[bytes], object]) -> AsyncIterator[bytes | None]:
    """The lines of a stream, without their newlines; None for one that is too long to be a request.

    Each chunk is shown to `seen` as it passes."""
    rest, is_too_long = b"", False
    async for chunk in chunks:
        seen(chunk)
        *whole, rest = (rest + chunk).split(b"\n")
        for line in whole:
            yield None if is_too_long else line
            is_too_long = False
        if len(rest) > MAX_INPUT_LINE_BYTES:
            rest, is_too_long = b"", True
    if rest or is_too_long:
        yield None if is_too_long else rest


class AskedIds(msgspec.Struct, frozen=True):
    """Under which custom_ids a shard's lines ask, as 16 bytes of hash each: many shards' are kept at once."""

    first_idx: int
    digests: bytes

    @classmethod
    def of(cls, first_idx: int, found: Mapping[int, str | None]) -> AskedIds:
        """`found` are all lines of the shard, in order."""
        return cls(first_idx, b"".join(UNREADABLE if each is None else _hashed(each) for each in found.values()))

    def is_answered(self, idx: int, custom_id: str | None, *, is_own: bool) -> bool:
        """Whether an answer under `custom_id` is to line `idx`.

        A worker is only ever given lines whose custom_id is known; the broker itself also answers lines whose custom_id
        could not be read, by it or by us.
        """
        at = DIGEST_BYTES * (idx - self.first_idx)
        asked = self.digests[at : at + DIGEST_BYTES]
        if is_own and (custom_id is None or asked == UNREADABLE):
            return True
        return custom_id is not None and _hashed(custom_id) == asked


def _hashed(custom_id: str) -> bytes:
    return hashlib.blake2b(custom_id.encode("utf-8"), digest_size=DIGEST_BYTES).digest()


async def read_part(store: ObjectStore, part: FinalPart, asked: AskedIds | None) -> list[PartLine]:
    """The lines of a committed part, verified against its row and the input. Raises Damaged, saying how.

    `asked` None: the batch has ended, so the custom_ids were compared before, and the bytes are still the same.
    """
    content = await _committed(store, part.key, part.size, part.sha256)
    # In a thread: unpacking and decoding megabytes would keep heartbeats and commits waiting.
    return await asyncio.to_thread(_verified, content, part, asked)


def _verified(content: bytes, part: FinalPart, asked: AskedIds | None) -> list[PartLine]:
    lines = _decoded(_unpacked(content))
    _check_lines(lines, part, asked)
    return lines


async def read_object(store: ObjectStore, key: str, sha256: str) -> list[PartLine]:
    """The lines of a part object, if it is the one that was committed under this hash. Raises Damaged, saying how."""
    content = await _committed(store, key, None, sha256)
    return await asyncio.to_thread(lambda: _decoded(_unpacked(content)))


async def _committed(store: ObjectStore, key: str, size: int | None, sha256: str) -> bytes:
    try:
        return await store.committed(key, size, sha256)
    except ObjectMissing as error:
        raise Damaged("the object is missing") from error
    except ObjectCorrupt as error:
        raise Damaged(str(error)) from error


def _unpacked(content: bytes) -> bytes:
    unpacker = zlib.decompressobj(wbits=31)  # 31: gzip framing
    try:
        plain = unpacker.decompress(content, MAX_PART_BYTES)
    except zlib.error as error:
        raise Damaged(f"not gzip: {error}") from error
    if not unpacker.eof or unpacker.unused_data:
        raise Damaged(f"cut short, followed by other bytes, or longer than {MAX_PART_BYTES} bytes unpacked")
    return plain


def _decoded(plain: bytes) -> list[PartLine]:
    try:
        plain.decode("utf-8")  # bodies pass through unread, and the output must be text
        return [_part_lines.decode(line) for line in plain.split(b"\n") if line]
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise Damaged(f"a line is not a part line: {error}") from error


def _check_lines(lines: list[PartLine], part: FinalPart, asked: AskedIds | None) -> None:
    numbers = [line.idx for line in lines]
    if len(set(numbers)) != len(numbers):
        raise Damaged("a line is in it twice")
    if ranges.from_lines(numbers) != part.lines:
        raise Damaged(f"it holds lines {list(ranges.from_lines(numbers))}, not {list(part.lines)}")
    failed = ranges.from_lines(line.idx for line in lines if line.status == "failed")
    if failed != part.failed:
        raise Damaged(f"lines {list(failed)} failed in it, {list(part.failed)} by its usage")
    if asked is None:
        return
    for line in lines:
        if not asked.is_answered(line.idx, line.line.custom_id, is_own=part.is_own):
            raise Damaged(f"line {line.idx} answers another custom_id than the input's")
