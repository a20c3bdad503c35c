"""From a file that arrives in pieces of any size to its lines. Memory: one piece and one line. Nothing is decompressed.

Decided where OpenAI is silent: a UTF-8 byte order mark is skipped (no line contains it); `\\r\\n` is tolerated; blank
lines at the end are ignored, elsewhere they are lines; the last line needs no newline.
"""

from __future__ import annotations

import re
from typing import Protocol

BOM = b"\xef\xbb\xbf"
BLANKS = b" \t\r\n"
LONGEST_MAGIC = 4
PIECE = 1024 * 1024  # bytes that are looked at together: what is looked at several times should still lie in a cache
SEARCHED_BACK = 4_096
BEGINNING = 4_096  # bytes of a long line that are shown at once
# First bytes of what people upload by mistake, and what to do instead.
NOT_TEXT = {
    b"\x1f\x8b": ("compressed_file", "the file is compressed with gzip; upload the plain JSONL"),
    b"\x28\xb5\x2f\xfd": ("compressed_file", "the file is compressed with zstd; upload the plain JSONL"),
    b"PK\x03\x04": ("compressed_file", "the file is a ZIP archive; upload the plain JSONL"),
    b"\xff\xfe": ("invalid_encoding", "the file is UTF-16; save it as UTF-8"),
    b"\xfe\xff": ("invalid_encoding", "the file is UTF-16; save it as UTF-8"),
}
# One JSON document over many lines would be one finding a line.
_ARRAY = re.compile(rb"\[[ \t\r]*(?:\n|\{)")
_SPREAD_OUT = re.compile(rb"\{[ \t\r]*\n")
ARRAY = (
    "array_file",
    "the file is one JSON array; write each of its objects on a line of its own, without [ ] and commas",
)
SPREAD_OUT = ("invalid_json_line", "the file is JSON laid out over many lines; write each object on one line")


class Receiver(Protocol):
    """Who takes the lines. Positions are bytes of the file; `stop` includes the line's ending."""

    is_hopeless: bool

    def take(self, text: bytes, begin: int, end: int, start: int) -> None:
        """Whole lines: bytes [begin, end) of `text`, and of the file from `start`. Only the last line of a file may be
        without its newline."""

    def begin_long(self, beginning: bytes, start: int) -> None:
        """A line of more than `longest` bytes begins; its bytes follow as `long_piece`s, the last up to its end."""

    def long_piece(self, piece: bytes, start: int) -> None: ...

    def end_long(self) -> None: ...

    def blank_tail(self, lines: int, size: int) -> None:
        """There are so many blank lines, of `size` bytes, that may be the end of the file."""

    def refuse(self, code: str, message: str) -> None:
        """The file as a whole is nothing that lines can be taken from."""


class Splitter:
    """`feed` it the file, then `finish`. A line longer than `longest` bytes is passed on in pieces."""

    def __init__(self, receiver: Receiver, longest: int) -> None:
        self._receiver = receiver
        self._longest = longest
        self._tail = bytearray()  # blank lines that may be the last ones, then the beginning of a line
        self._start = 0  # where the tail begins in the file
        self._searched = 0  # bytes at the start of the tail that need not be looked at again
        self._has_begun = False
        self._is_long = False  # inside a line that is passed on in pieces

    def feed(self, piece: bytes) -> None:
        for begin in range(0, len(piece), PIECE):
            self._feed(piece, begin, min(begin + PIECE, len(piece)))
            if self._receiver.is_hopeless:
                return

    def _feed(self, piece: bytes, begin: int, end: int) -> None:
        whole = memoryview(piece)
        usual = self._has_begun and not self._is_long
        if usual and (stop := _after_last_filled(piece, begin, end)):
            # Only the line that began in the tail is copied. Pages that the system gives and takes back for a megabyte cost
            # 1 to 4 µs for 4 kB, whether the tail grows and shrinks by it or both are joined.
            if self._tail:
                first = piece.index(b"\n", begin) + 1
                self._take(b"".join((self._tail, whole[begin:first])), 0)
                begin = first
            self._tail, self._searched = bytearray(whole[stop:end]), 0
            if begin < stop and not self._receiver.is_hopeless:
                self._take(piece, begin, stop)
        else:
            self._tail += whole[begin:end]
        if not self._has_begun:
            if len(self._tail) < LONGEST_MAGIC:
                return
            self._begin()
        if not self._receiver.is_hopeless:
            self._split()

    def _take(self, text: bytes, begin: int, end: int | None = None) -> None:
        """Pass on [begin, end) of the text, which is what follows in the file."""
        end = len(text) if end is None else end
        start, self._start = self._start, self._start + end - begin
        self._receiver.take(text, begin, end, start)

    def finish(self) -> None:
        """The file ends here: what is left is its last line, unless it is blank."""
        if not self._has_begun:
            self._begin()
        if self._receiver.is_hopeless:
            return
        self._split()
        if self._is_long:
            self._receiver.end_long()
        elif not self._receiver.is_hopeless and self._tail.strip(BLANKS):
            self._pass_on(len(self._tail))

    def _begin(self) -> None:
        self._has_begun = True
        for magic, (code, message) in NOT_TEXT.items():
            if self._tail.startswith(magic):
                self._receiver.refuse(code, message)
                return
        if self._tail.startswith(BOM):
            self._drop(len(BOM))

    def _drop(self, size: int) -> None:
        del self._tail[:size]
        self._start += size
        self._searched = 0

    def _split(self) -> None:
        if self._is_long:
            self._go_on_with_long()
        if self._is_long or self._receiver.is_hopeless:
            return
        if self._tail.find(b"\n", self._searched) >= 0:
            # up to the end of the last line that is not blank: those after it may be the end of the file
            if size := _after_last_filled(self._tail, 0, len(self._tail)):
                self._pass_on(size)
            self._receiver.blank_tail(self._tail.count(b"\n"), len(self._tail))
        self._searched = len(self._tail)
        # the last line, which has not ended yet; + 1: it may end in \r
        if not self._receiver.is_hopeless and self._searched > self._longest + 1:
            last = self._tail.rfind(b"\n") + 1
            if self._searched - last > self._longest + 1:
                self._begin_long(last)

    def _pass_on(self, size: int) -> None:
        with memoryview(self._tail) as tail:
            stretch = bytes(tail[:size])
        start = self._start
        self._drop(size)
        self._receiver.take(stretch, 0, size, start)

    def _begin_long(self, last: int) -> None:
        if last:  # blank lines that were not at the end after all
            self._pass_on(last)
        self._is_long = True
        self._receiver.begin_long(bytes(self._tail[:BEGINNING]), self._start)
        self._go_on_with_long()

    def _go_on_with_long(self) -> None:
        end = self._tail.find(b"\n") + 1
        piece = bytes(self._tail[: end or len(self._tail)])
        start = self._start
        self._drop(len(piece))
        self._receiver.long_piece(piece, start)
        if end:
            self._is_long = False
            self._receiver.end_long()


def _after_last_filled(text: bytes | bytearray, begin: int, end: int) -> int:
    r"""Where the last line ends that ends within [begin, end) and is not blank there; 0 if there is none.

    >>> _after_last_filled(b"a\nb\n\n c", 0, 7), _after_last_filled(b"a\n \nc", 2, 5)
    (4, 0)
    """
    stop = text.rfind(b"\n", begin, end)
    while stop > begin:
        first = max(begin, stop - SEARCHED_BACK)
        if filled := len(text[first:stop].rstrip(BLANKS)):
            return text.index(b"\n", first + filled) + 1
        stop = first
    return 0


def is_one_document(first: bytes) -> tuple[str, str] | None:
    r"""Whether the file's first line, newline included, begins one JSON document over many lines: code and message.

    >>> is_one_document(b'[{"custom_id": "a"},\n')[0]
    'array_file'
    >>> is_one_document(b"[1]\n") is is_one_document(b'{"custom_id": "a"}\n') is None
    True
    """
    if _ARRAY.match(first):
        return ARRAY
    return SPREAD_OUT if _SPREAD_OUT.match(first) else None
