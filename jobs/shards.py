"""Cutting a stream of lines into shards as it passes: runs of lines with their byte ranges and hashes."""

from __future__ import annotations

import hashlib
from itertools import groupby

from jobs.prefix import Runs
from jobs.types import ShardSpec

# A shard is cut early where the shared prompt prefix changes, but only when it is this full: a file that interleaves
# its prefixes must not become thousands of tiny shards.
EARLY_SHARE = 4


class Cutter:
    """Lines go in one after another; `finish` gives the shards. A shard is full at `max_lines` or `max_bytes`.

    A line longer than `max_bytes` is a shard of its own, and so is one that is opened with `begin_alone`. Bytes are
    hashed as they are `read`: the caller shows each stretch of the file before it adds the lines in it.
    """

    def __init__(self, max_lines: int, max_bytes: int) -> None:
        self._max_lines = max_lines
        self._max_bytes = max_bytes
        self._early_lines = max(1, max_lines // EARLY_SHARE)
        self._early_bytes = max_bytes // EARLY_SHARE
        self._shards: list[ShardSpec] = []
        self._next_idx = 0
        self._view = memoryview(b"")
        self._view_start = 0
        self._open(0)

    def _open(self, start: int) -> None:
        self._start = self._stop = self._hashed = start
        self._lines = self._input_tokens = self._output_tokens = 0
        self._prefixes = Runs()
        self._digest = hashlib.sha256()

    def read(self, stretch: bytes | memoryview, start: int) -> None:
        """The bytes from `start` of the file that the next lines lie in."""
        self._hash()
        self._view, self._view_start = memoryview(stretch), start

    def add(self, start: int, stop: int, input_tokens: int, output_tokens: int, prefix: str | None) -> None:
        """The next line, line ending included, at bytes [start, stop) of the file."""
        if not self._lines or self._is_full(stop) or (self._is_long() and self._prefixes.changes_with(prefix)):
            self._begin(start)
        self._stop = stop
        self._lines += 1
        self._input_tokens += input_tokens
        self._output_tokens += output_tokens
        self._prefixes.add(prefix)

    def add_lines(
        self, start: int, stops: list[int], inputs: list[int], outputs: list[int], prefixes: list[str | None]
    ) -> None:
        """The next lines, one after another: the same as to `add` each."""
        at = 0
        for prefix, run in groupby(prefixes):
            stop = at + len(list(run))
            self.add(start, stops[at], inputs[at], outputs[at], prefix)
            lines = stop - at - 1  # are left, and make no difference to where shards are cut as long as they fit
            if self._lines + lines <= self._max_lines and stops[stop - 1] - self._start <= self._max_bytes:
                self._stop = stops[stop - 1]
                self._lines += lines
                self._input_tokens += sum(inputs[at + 1 : stop])
                self._output_tokens += sum(outputs[at + 1 : stop])
                self._prefixes.add(prefix, lines)
            else:
                for line in range(at + 1, stop):
                    self.add(stops[line - 1], stops[line], inputs[line], outputs[line], prefix)
            start, at = stops[stop - 1], stop

    def add_unsent(self, start: int, stop: int) -> None:
        """A line that no engine gets: it lies in the shard, costs nothing and has no prefix."""
        if not self._lines or self._is_full(stop):
            self._begin(start)
        self._stop = stop
        self._lines += 1

    def _begin(self, start: int) -> None:
        if self._lines:
            self._cut()
        self._open(start)

    def _is_full(self, stop: int) -> bool:
        return self._lines >= self._max_lines or stop - self._start > self._max_bytes

    def _is_long(self) -> bool:
        """Whether a change of prefix is reason enough to cut."""
        return self._lines >= self._early_lines or self._stop - self._start >= self._early_bytes

    def begin_alone(self, start: int) -> None:
        """A line that shares its shard with no other, because no worker shall ever be sent it."""
        self.end_alone()
        self._open(start)
        self._lines = 1

    def extend_alone(self, stop: int) -> None:
        """More of the line goes up to `stop`."""
        self._stop = stop

    def end_alone(self) -> None:
        """Close the shard at hand, if there is one."""
        if self._lines:
            self._cut()

    def _hash(self) -> None:
        """Take what was added since, as far as it was shown, into the digest of the shard at hand."""
        if self._hashed < self._stop:
            self._digest.update(self._view[self._hashed - self._view_start : self._stop - self._view_start])
            self._hashed = self._stop

    def _cut(self) -> None:
        self._hash()
        self._shards.append(
            ShardSpec(
                index=len(self._shards),
                first_idx=self._next_idx,
                lines=self._lines,
                start=self._start,
                stop=self._stop,
                sha256=self._digest.hexdigest(),
                input_tokens=self._input_tokens,
                output_tokens=self._output_tokens,
                prefix=self._prefixes.majority(),
            )
        )
        self._next_idx += self._lines
        self._lines = 0

    def finish(self) -> tuple[ShardSpec, ...]:
        if self._lines:
            self._cut()
        return tuple(self._shards)
