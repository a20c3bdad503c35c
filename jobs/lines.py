"""Validating an input file as it streams by: every bad line is found, memory stays flat, nothing is decompressed.

A bad line is a finding, and a file with findings has no shards. With `skip_invalid` it is an `InvalidLine` instead: it
keeps its number and lies in a shard, but is answered at intake and never sent to a worker.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections.abc import AsyncIterator, Iterable

import msgspec
import numpy as np

from jobs import request_line
from jobs.line_bytes import Splitter, is_one_document
from jobs.line_json import shown
from jobs.line_keys import Layout, Marks
from jobs.line_names import Names, beginning_name_of, name_of
from jobs.line_tags import TagIndex
from jobs.quick_line import CHAT, QuickReader
from jobs.repeatable import Repeats
from jobs.request_line import Request, Terms
from jobs.shards import Cutter
from jobs.types import Finding, InvalidLine, Limits, Validation

MOST_BLANKS = 1024 * 1024  # bytes of blank lines that may be the end of the file
# Lines that are read at once: enough that what is done once for all of them is little for each, few enough that their
# texts lie in the processor's cache.
BATCH_BYTES, BATCH_LINES = 512 * 1024, 256
LONGEST_MESSAGE = 1_000  # of a line that has many problems at once


async def validate(
    chunks: AsyncIterator[bytes],
    *,
    limits: Limits,
    shard_lines: int,
    shard_bytes: int,
    default_output_tokens: int,
    endpoint: str | None = None,
    skip_invalid: bool = False,
    reuse: bool = False,
    media_hosts: frozenset[str] = frozenset(),
) -> Validation:
    """Read the whole file once. `endpoint`, if given, is what every line's url must be; `reuse` fills `repeatable`;
    from `media_hosts`, and no others, an engine may fetch what a prompt refers to.

    Parsing runs in a thread chunk by chunk, so that the event loop stays free.
    """
    terms = Terms(
        limits=limits,
        default_output_tokens=default_output_tokens,
        endpoint=endpoint,
        reuse=reuse,
        media_hosts=media_hosts,
    )
    validator = Validator(terms, shard_lines, shard_bytes, skip_invalid=skip_invalid)
    async for chunk in chunks:
        await asyncio.to_thread(validator.feed, chunk)
        if validator.is_hopeless:
            break
    return await asyncio.to_thread(validator.finish)


class Validator:
    """Takes the file in pieces of any size. `is_hopeless`: reading on would find nothing more of use."""

    def __init__(
        self,
        terms: Terms,
        shard_lines: int,
        shard_bytes: int,
        *,
        skip_invalid: bool = False,
    ) -> None:
        self._terms = terms
        self._limits = terms.limits
        self._skips = skip_invalid
        self._splitter = Splitter(self, terms.limits.max_line_bytes)
        self._cutter = Cutter(shard_lines, shard_bytes)
        self._agreed = _Agreed(terms.endpoint)
        self._findings: list[Finding] = []
        self._findings_total = 0
        self._invalid: list[InvalidLine] = []
        self._repeats = Repeats()
        self._tags = TagIndex(terms.limits.max_tag_values)
        self._names = Names()
        self._quick = QuickReader(terms)
        self._batch_bytes = min(BATCH_BYTES, terms.limits.max_line_bytes)
        self._stretch_stop = 0
        self._room: Marks = np.empty(0, dtype=np.bool_)
        self._received = 0
        self._lines = 0
        self.is_hopeless = False

    def feed(self, chunk: bytes) -> None:
        if self.is_hopeless:
            return
        self._received += len(chunk)
        limit = self._limits.max_file_bytes
        if self._received > limit:
            self.refuse("file_too_large", f"the file is longer than {limit} bytes (limit max_file_bytes); split it")
            return
        self._splitter.feed(chunk)

    def finish(self) -> Validation:
        """The verdict. Call it once, after the last byte."""
        if not self.is_hopeless:
            self._splitter.finish()
        if not self.is_hopeless:
            self._judge_the_whole()
        has_failed = self._findings_total > 0
        shards = self._cutter.finish()
        return Validation(
            findings=tuple(self._findings),
            findings_total=self._findings_total,
            model=self._agreed.model,
            endpoint=self._agreed.url,
            lines=self._lines,
            input_tokens=sum(shard.input_tokens for shard in shards),
            output_tokens=sum(shard.output_tokens for shard in shards),
            shards=() if has_failed else shards,
            invalid=() if has_failed else tuple(self._invalid),
            repeatable=self._repeats.found() if self._terms.reuse and not has_failed else None,
            tags={} if has_failed else self._tags.ranges(),
        )

    def _judge_the_whole(self) -> None:
        if not self._lines:
            self.refuse("empty_file", "the file holds no request; write one JSON object a line")
        elif len(self._invalid) == self._lines:
            self.refuse("no_valid_line", f"none of the file's {self._lines} lines is a request; the errors say why")
            for bad in self._invalid:
                self._add(Finding(code=bad.code, message=bad.message, line=bad.idx + 1))

    # --- the splitter's receiver ---

    def take(self, text: bytes, begin: int, end: int, start: int) -> None:
        if not self._lines and (one_document := is_one_document(text[begin:end].lstrip(b" \t\r\n"))):
            self.refuse(*one_document)
            return
        whole, offset = memoryview(text), start - begin  # from here on positions are the text's; + offset: the file's
        self._cutter.read(whole[begin:end], start)
        self._stretch_stop = offset + end
        if len(self._room) < end - begin:
            self._room = np.empty(2 * (end - begin), dtype=np.bool_)
        layout = Layout(text, begin, end, self._room)
        ends, may_hold_returns = layout.ends, text.find(b"\r", begin, end) >= 0
        may_be_chats = not may_hold_returns and layout.is_closed
        line, lines = 0, len(ends)
        while line < lines:
            after = line + 1  # alone, until a line has said what all must agree on
            if self._agreed.model is not None:
                after = max(bisect_right(ends, begin + self._batch_bytes, line, min(line + BATCH_LINES, lines)), after)
            some = ends[line:after]
            if not (may_be_chats and self._take_chats(whole, offset, begin, some, layout.keys(begin, some[-1]))):
                for stop in some:
                    self._take_line(whole[begin:stop], offset + begin, layout.keys(begin, stop), may_hold_returns)
                    if self.is_hopeless:
                        return
                    begin = stop + 1
            begin = some[-1] + 1
            line = after

    def _take_chats(self, whole: memoryview, offset: int, begin: int, ends: list[int], keys: int) -> bool:
        """Take lines of the text that begin at `begin`, if they are chats with nothing wrong; otherwise do nothing."""
        lines, agreed = len(ends), self._agreed
        if agreed.model is None or agreed.url != CHAT or self._lines + lines > self._limits.max_lines:
            return False
        chats = self._quick.read_chats(whole[begin : ends[-1]], lines, keys)
        if (
            chats is None
            or ends[-1] - begin > self._limits.max_line_bytes  # all together are shorter than one may be
            or chats.models.count(agreed.model) != lines
            or not self._names.are_new(chats.names, self._lines + 1)
        ):
            return False
        stops = [offset + end + 1 for end in ends]
        stops[-1] = min(stops[-1], self._stretch_stop)
        self._cutter.add_lines(offset + begin, stops, chats.input_tokens, chats.output_tokens, chats.prefixes)
        for idx, digest in enumerate(chats.digests, self._lines):
            if digest is not None:
                self._repeats.add(idx, digest)
        self._lines += lines
        return True

    def _take_line(self, row: memoryview, start: int, keys: int, may_hold_returns: bool) -> None:
        if not self._count_line():
            return
        request = self._quick.read(row, keys, may_hold_returns)
        stop = start + len(row)
        if stop < self._stretch_stop:
            stop += 1  # its newline
        if request is None or not self._is_clear(request, len(row)):
            self._take_slowly(bytes(row).removesuffix(b"\r"), start, stop)
        else:
            self._take_request(request, start, stop)

    def _is_clear(self, request: Request, size: int) -> bool:
        """Whether nothing is wrong with the line as one of this file: its size, what all agree on, and its name."""
        agreed = self._agreed
        return (
            request.model == agreed.model
            and request.url == agreed.url
            and size <= self._limits.max_line_bytes
            and self._names.first_use(request.custom_id, self._lines) == self._lines
        )

    def begin_long(self, beginning: bytes, start: int) -> None:
        if not self._lines and (one_document := is_one_document(beginning)):
            self.refuse(*one_document)
        elif self._count_line():
            self._cutter.begin_alone(start)
            self._refuse_line([self._too_long()], beginning_name_of(beginning))

    def long_piece(self, piece: bytes, start: int) -> None:
        self._cutter.read(piece, start)
        self._cutter.extend_alone(start + len(piece))

    def end_long(self) -> None:
        self._cutter.end_alone()

    def blank_tail(self, lines: int, size: int) -> None:
        # Blank lines are limited, too: a file of newlines alone must not keep us busy.
        if lines > self._limits.max_lines:
            self._too_many_lines()
        elif size > 2 * self._limits.max_line_bytes + MOST_BLANKS:
            self.refuse("invalid_json_line", f"{size} bytes of blank lines follow line {self._lines}; remove them")

    def refuse(self, code: str, message: str) -> None:
        self._add(Finding(code=code, message=message))
        self.is_hopeless = True

    # --- lines to findings ---

    def _take_slowly(self, content: bytes, start: int, stop: int) -> None:
        if len(content) > self._limits.max_line_bytes:
            self._cutter.begin_alone(start)
            self._cutter.extend_alone(stop)
            self._cutter.end_alone()
            self._refuse_line([self._too_long()], beginning_name_of(content))
            return
        if not content.strip(b" \t\r"):
            blank = Finding(code="invalid_json_line", message="the line is blank; remove it")
            found: Request | list[Finding] = [blank]
        else:
            found = request_line.check(content, self._terms)
        if isinstance(found, Request) and (strange := self._strangeness(found)):
            found = strange
        if isinstance(found, Request):
            self._take_request(found, start, stop)
        else:
            self._cutter.add_unsent(start, stop)
            self._refuse_line(found, name_of(content))

    def _strangeness(self, request: Request) -> list[Finding]:
        """What is wrong with a request only because of the lines before it."""
        return [*self._agreed.disagreements(request, self._lines), *self._duplicate(request)]

    def _take_request(self, request: Request, start: int, stop: int) -> None:
        self._cutter.add(start, stop, request.input_tokens, request.output_tokens, request.prefix)
        if request.digest is not None:
            self._repeats.add(self._lines - 1, request.digest)
        if request.tags:
            self._tags.add(self._lines - 1, request.tags)
            if self._tags.is_full:
                limit = self._limits.max_tag_values
                message = f"the lines have more than {limit} different tags (limit max_tag_values); use fewer values"
                self.refuse("too_many_tags", message)

    def _duplicate(self, request: Request) -> list[Finding]:
        first = self._names.first_use(request.custom_id, self._lines)
        if first == self._lines:
            return []
        message = f"custom_id {shown(request.custom_id)} was already used on line {first}; make each custom_id unique"
        return [Finding(code="duplicate_custom_id", message=message, param="custom_id")]

    def _count_line(self) -> bool:
        self._lines += 1
        if self._lines > self._limits.max_lines:
            self._too_many_lines()
        return not self.is_hopeless

    def _too_many_lines(self) -> None:
        limit = self._limits.max_lines
        self.refuse("too_many_lines", f"the file has more than {limit} lines (limit max_lines); split it")

    def _too_long(self) -> Finding:
        message = f"the line is longer than {self._limits.max_line_bytes} bytes (limit max_line_bytes)"
        return Finding(code="line_too_long", message=message)

    def _refuse_line(self, found: Iterable[Finding], name: str | None) -> None:
        """The line at hand is no request."""
        found = [msgspec.structs.replace(finding, line=self._lines) for finding in found]
        if not self._skips:
            for finding in found:
                self._add(finding)
            return
        message = "; ".join(finding.message for finding in found)[:LONGEST_MESSAGE]
        self._invalid.append(InvalidLine(idx=self._lines - 1, custom_id=name, code=found[0].code, message=message))
        limit = self._limits.max_invalid
        if len(self._invalid) > limit:
            self.refuse("too_many_invalid_lines", f"more than {limit} lines are no requests (limit max_invalid)")

    def _add(self, finding: Finding) -> None:
        self._findings_total += 1
        if len(self._findings) < self._limits.max_findings:
            self._findings.append(finding)


class _Agreed:
    """The one model and one endpoint of the file: the batch's own, or those of the first good line."""

    def __init__(self, endpoint: str | None) -> None:
        self.model: str | None = None
        self.url = endpoint
        self._first = 0

    def disagreements(self, request: Request, line: int) -> list[Finding]:
        if self.model is None:
            self.model, self._first = request.model, line
            self.url = self.url or request.url
        found = []
        if request.url != self.url:
            message = f"url {shown(request.url)} differs: line {self._first} has {self.url}; a batch has one endpoint"
            found.append(Finding(code="invalid_url", message=message, param="url"))
        if request.model != self.model:
            agreed = f"line {self._first} has {shown(self.model)}"
            message = f"model {shown(request.model)} differs: {agreed}; a batch has one model"
            found.append(Finding(code="mismatched_model", message=message, param="body.model"))
        return found
