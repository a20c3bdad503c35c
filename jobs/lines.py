"""Validating an input file as it streams by: every bad line is found, memory stays flat, nothing is decompressed.

Decided where OpenAI is silent: a UTF-8 byte order mark is skipped (no shard contains it); `\\r\\n` is tolerated, a bare
`\\r` is not; blank lines at the end are ignored, elsewhere each is a finding, so that line number and position agree;
the last line needs no newline.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator

from jobs import request_line
from jobs.request_line import Request, shown
from jobs.shards import Cutter
from jobs.types import Finding, Limits, Validation

BOM = b"\xef\xbb\xbf"
# First bytes of what people upload by mistake, and what to do instead.
NOT_TEXT = {
    b"\x1f\x8b": ("compressed_file", "the file is compressed with gzip; upload the plain JSONL"),
    b"\x28\xb5\x2f\xfd": ("compressed_file", "the file is compressed with zstd; upload the plain JSONL"),
    b"PK\x03\x04": ("compressed_file", "the file is a ZIP archive; upload the plain JSONL"),
    b"\xff\xfe": ("invalid_encoding", "the file is UTF-16; save it as UTF-8"),
    b"\xfe\xff": ("invalid_encoding", "the file is UTF-16; save it as UTF-8"),
}
LONGEST_MAGIC = 4


async def validate(
    chunks: AsyncIterator[bytes],
    *,
    limits: Limits,
    shard_lines: int,
    shard_bytes: int,
    default_output_tokens: int,
    endpoint: str | None = None,
) -> Validation:
    """Read the whole file once. `endpoint`, if given, is what every line's url must be.

    Parsing runs in a thread chunk by chunk, so that the event loop stays free.
    """
    validator = Validator(limits, shard_lines, shard_bytes, default_output_tokens, endpoint=endpoint)
    async for chunk in chunks:
        await asyncio.to_thread(validator.feed, chunk)
        if validator.is_hopeless:
            break
    return await asyncio.to_thread(validator.finish)


class Validator:
    """Takes the file in pieces of any size. `is_hopeless`: reading on would find nothing more of use."""

    def __init__(
        self,
        limits: Limits,
        shard_lines: int,
        shard_bytes: int,
        default_output_tokens: int,
        *,
        endpoint: str | None = None,
    ) -> None:
        self._limits = limits
        self._default_output_tokens = default_output_tokens
        self._findings: list[Finding] = []
        self._findings_total = 0
        self._cutter = Cutter(shard_lines, shard_bytes)
        self._agreed = _Agreed(endpoint)
        self._first_use: dict[bytes, int] = {}  # 16-byte hash of a custom_id → its line
        self._buffer = bytearray()
        self._scanned = 0  # bytes at the start of the buffer that hold no newline
        self._offset = 0  # of the buffer's start in the file
        self._received = 0
        self._has_begun = False
        self._is_skipping = False  # inside a line that is too long
        self._line = 0
        self._blanks = 0
        self._input_tokens = 0
        self._output_tokens = 0
        self.is_hopeless = False

    def feed(self, chunk: bytes) -> None:
        if self.is_hopeless:
            return
        self._received += len(chunk)
        self._buffer += chunk
        if self._received > self._limits.max_file_bytes:
            self._give_up(
                "file_too_large",
                f"the file is longer than {self._limits.max_file_bytes} bytes (limit max_file_bytes); split it",
            )
        elif self._has_begun or len(self._buffer) >= LONGEST_MAGIC:
            self._begin()
            self._take_lines()

    def finish(self) -> Validation:
        """The verdict. Call it once, after the last byte."""
        if not self.is_hopeless:
            self._begin()
            self._take_lines()
        if not self.is_hopeless and self._buffer and not self._is_skipping:
            self._take(bytes(self._buffer))
        if not self._findings_total and not self._line:
            self._add(Finding(code="empty_file", message="the file holds no request; write one JSON object a line"))
        return Validation(
            findings=tuple(self._findings),
            findings_total=self._findings_total,
            model=self._agreed.model,
            endpoint=self._agreed.url,
            lines=self._line,
            input_tokens=self._input_tokens,
            output_tokens=self._output_tokens,
            shards=() if self._findings_total else self._cutter.finish(),
        )

    # --- bytes to lines ---

    def _begin(self) -> None:
        if self._has_begun:
            return
        self._has_begun = True
        for magic, (code, message) in NOT_TEXT.items():
            if self._buffer.startswith(magic):
                self._give_up(code, message)
                return
        if self._buffer.startswith(BOM):
            self._drop(len(BOM))

    def _take_lines(self) -> None:
        while not self.is_hopeless and (end := self._buffer.find(b"\n", self._scanned)) >= 0:
            raw = bytes(self._buffer[: end + 1])
            if self._is_skipping:
                self._is_skipping = False
            else:
                self._take(raw)
            self._drop(end + 1)
        self._scanned = len(self._buffer)
        if self._scanned > self._limits.max_line_bytes + 1:  # + 1: it may end in \r
            if not self._is_skipping:
                self._too_long()
            self._is_skipping = True
            self._drop(self._scanned)

    def _drop(self, size: int) -> None:
        del self._buffer[:size]
        self._offset += size
        self._scanned = 0

    # --- lines to findings ---

    def _take(self, raw: bytes) -> None:
        content = raw.removesuffix(b"\n").removesuffix(b"\r")
        if not content.strip(b" \t"):
            self._blanks += 1
            self._limit_lines()
            return
        if len(content) > self._limits.max_line_bytes:
            self._too_long()
            return
        self._count_line()
        if self.is_hopeless:
            return
        checked = request_line.check(content, self._line, self._limits, self._default_output_tokens)
        if isinstance(checked, list):
            for finding in checked:
                self._add(finding)
            return
        self._take_request(raw, checked)

    def _take_request(self, raw: bytes, request: Request) -> None:
        for finding in (*self._agreed.disagreements(request, self._line), *self._duplicate(request)):
            self._add(finding)
        self._input_tokens += request.input_tokens
        self._output_tokens += request.output_tokens
        if not self._findings_total:
            self._cutter.add(raw, self._offset, input_tokens=request.input_tokens, output_tokens=request.output_tokens)

    def _duplicate(self, request: Request) -> list[Finding]:
        digest = hashlib.blake2b(request.custom_id.encode("utf-8"), digest_size=16).digest()
        first = self._first_use.setdefault(digest, self._line)
        if first == self._line:
            return []
        message = f"custom_id {shown(request.custom_id)} was already used on line {first}; make each custom_id unique"
        return [Finding(code="duplicate_custom_id", message=message, line=self._line, param="custom_id")]

    def _count_line(self) -> None:
        """A line that is not blank: the blank ones before it were not at the end of the file."""
        for _ in range(self._blanks):
            self._line += 1
            self._add(Finding(code="invalid_json_line", message="the line is blank; remove it", line=self._line))
        self._blanks = 0
        self._line += 1
        self._limit_lines()

    def _limit_lines(self) -> None:
        # Blank ones are limited, too: a file of newlines alone must not keep us busy.
        limit = self._limits.max_lines
        if self._line > limit or self._blanks > limit:
            self._give_up("too_many_lines", f"the file has more than {limit} lines (limit max_lines); split it")

    def _too_long(self) -> None:
        self._count_line()
        limit = self._limits.max_line_bytes
        message = f"the line is longer than {limit} bytes (limit max_line_bytes)"
        self._add(Finding(code="line_too_long", message=message, line=self._line))

    def _add(self, finding: Finding) -> None:
        self._findings_total += 1
        if len(self._findings) < self._limits.max_findings:
            self._findings.append(finding)

    def _give_up(self, code: str, message: str) -> None:
        self._add(Finding(code=code, message=message))
        self.is_hopeless = True
        self._buffer.clear()


class _Agreed:
    """What all lines must agree on. The first good line sets it, unless the batch did."""

    def __init__(self, endpoint: str | None) -> None:
        self.url = endpoint
        self.model: str | None = None
        self._given = endpoint is not None
        self._first = 0

    def disagreements(self, request: Request, line: int) -> list[Finding]:
        if self.model is None:
            self.model, self._first = request.model, line
            self.url = self.url or request.url
        found = []
        if request.url != self.url:
            whose = "the batch's endpoint is" if self._given else f"line {self._first} has"
            message = f"url {shown(request.url)} differs: {whose} {self.url}; a batch has one endpoint"
            found.append(Finding(code="invalid_url", message=message, line=line, param="url"))
        if request.model != self.model:
            agreed = f"line {self._first} has {shown(self.model)}"
            message = f"model {shown(request.model)} differs: {agreed}; a batch has one model"
            found.append(Finding(code="mismatched_model", message=message, line=line, param="body.model"))
        return found
