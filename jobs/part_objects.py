"""Reading part objects and input lines back, trusting nothing: size, sha256, form, line numbers, custom_ids.

A part object is gzip'd JSON Lines; each line is `workers/agent/schemas/part.line.json`.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Mapping
from typing import Literal

import msgspec

from jobs import ranges
from jobs.errors import ObjectCorrupt, ObjectMissing
from jobs.final_plan import FinalPart, FinalShard
from jobs.objects import ObjectStore

# A part is cut at 4 MiB or 200 lines; even a single long answer stays far below. More is an attack.
MAX_PART_BYTES = 256 * 1024 * 1024


class Damaged(Exception):
    """The part is not what was committed."""


class AnswerError(msgspec.Struct, frozen=True):
    code: str
    message: str


class AnswerResponse(msgspec.Struct, frozen=True):
    """The engine's answer; the body passes through byte for byte."""

    status_code: int
    request_id: str
    body: msgspec.Raw


class AnswerLine(msgspec.Struct, frozen=True):
    """OpenAI's output line without its id."""

    custom_id: str
    response: AnswerResponse | None
    error: AnswerError | None


class PartLine(msgspec.Struct, frozen=True):
    idx: int
    status: Literal["completed", "failed"]
    line: AnswerLine


class _CustomId(msgspec.Struct):
    custom_id: str


_part_lines = msgspec.json.Decoder(PartLine)
_custom_ids = msgspec.json.Decoder(_CustomId)


async def custom_ids(store: ObjectStore, input_key: str, shard: FinalShard) -> dict[int, str]:
    """The custom_id of each line of the shard, from the input itself.

    Raises ObjectMissing and ObjectCorrupt: without its input a batch cannot be finished.
    """
    content = await store.get(input_key, shard.start, shard.stop)
    if hashlib.sha256(content).hexdigest() != shard.sha256:
        raise ObjectCorrupt(
            f"object {input_key}: bytes [{shard.start}, {shard.stop}) are not those that were validated"
        )
    lines = content.removesuffix(b"\n").split(b"\n")
    return {shard.first_idx + n: _custom_ids.decode(line).custom_id for n, line in enumerate(lines)}


async def read_part(store: ObjectStore, part: FinalPart, ids: Mapping[int, str]) -> list[PartLine]:
    """The lines of a committed part, verified against its row and the input's `ids`. Raises Damaged, saying how."""
    try:
        content = await store.get(part.key)
    except ObjectMissing as error:
        raise Damaged("the object is missing") from error
    if len(content) != part.size:
        raise Damaged(f"{len(content)} bytes, not the {part.size} that were committed")
    if hashlib.sha256(content).hexdigest() != part.sha256:
        raise Damaged(f"sha256 {hashlib.sha256(content).hexdigest()}, not {part.sha256}")
    lines = _decoded(_unpacked(content))
    _check_lines(lines, part, ids)
    return lines


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


def _check_lines(lines: list[PartLine], part: FinalPart, ids: Mapping[int, str]) -> None:
    numbers = [line.idx for line in lines]
    if len(set(numbers)) != len(numbers):
        raise Damaged("a line is in it twice")
    if ranges.from_lines(numbers) != part.lines:
        raise Damaged(f"it holds lines {list(ranges.from_lines(numbers))}, not {list(part.lines)}")
    failed = ranges.from_lines(line.idx for line in lines if line.status == "failed")
    if failed != part.failed:
        raise Damaged(f"lines {list(failed)} failed in it, {list(part.failed)} by its usage")
    for line in lines:
        if ids[line.idx] != line.line.custom_id:
            raise Damaged(f"line {line.idx} answers another custom_id than the input's")
