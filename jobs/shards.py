"""Cutting a stream of lines into shards as it passes: runs of lines with their byte ranges and hashes."""

from __future__ import annotations

import hashlib

from jobs.types import ShardSpec


class Cutter:
    """Lines go in one after another; `finish` gives the shards. A shard is full at `max_lines` or `max_bytes`.

    A single line longer than `max_bytes` is a shard of its own.
    """

    def __init__(self, max_lines: int, max_bytes: int) -> None:
        self._max_lines = max_lines
        self._max_bytes = max_bytes
        self._shards: list[ShardSpec] = []
        self._next_idx = 0
        self._open(0)

    def _open(self, start: int) -> None:
        self._start = self._stop = start
        self._lines = self._input_tokens = self._output_tokens = 0
        self._digest = hashlib.sha256()

    def add(self, raw: bytes, start: int, *, input_tokens: int, output_tokens: int) -> None:
        """The next line: its bytes as uploaded, line ending included, which begin at `start` of the file."""
        size = len(raw)
        if self._lines and (self._lines >= self._max_lines or self._stop - self._start + size > self._max_bytes):
            self._cut()
        if not self._lines:
            self._open(start)
        self._digest.update(raw)
        self._stop = start + size
        self._lines += 1
        self._input_tokens += input_tokens
        self._output_tokens += output_tokens

    def _cut(self) -> None:
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
            )
        )
        self._next_idx += self._lines
        self._lines = 0

    def finish(self) -> tuple[ShardSpec, ...]:
        if self._lines:
            self._cut()
        return tuple(self._shards)
