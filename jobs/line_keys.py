"""How many keys the JSON objects in a line write, counted without parsing: the proof that a parser lost none of them.

Fast parsers keep the last of two equal keys and say nothing. Here every colon is counted whose last non-blank byte before
it is an unescaped quote. In valid JSON each key is followed by such a colon, so the count is at least the number of keys
written; a parser that returns this many keys has lost none. The count is too high only for lines with a string that
begins with a colon, such as ":)": whoever compares must then look closer.
"""

from __future__ import annotations

from bisect import bisect_left

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]
Positions = npt.NDArray[np.intp]
Marks = npt.NDArray[np.bool_]

# A key and its colon stand apart, or a key ends in backslashes, by so much at the most: beyond it counts as one. Otherwise
# a line of nothing but blanks or backslashes would take its square in time.
LOOKED_BACK = 16

_COLON, _QUOTE, _BACKSLASH = b':"\\'
_IS_BLANK = np.zeros(256, dtype=bool)
_IS_BLANK[list(b" \t\r\n")] = True


def line_ends(text: bytes, begin: int, end: int) -> list[int]:
    """Where each of the whole lines in [begin, end) ends: at its newline, or at `end`."""
    ends, newline = [], text.find(b"\n", begin, end)
    while newline >= 0:
        ends.append(newline)
        newline = text.find(b"\n", newline + 1, end)
    return ends if ends and ends[-1] == end - 1 else [*ends, end]


class Layout:
    r"""Where the lines of a stretch of text end, and where its keys are.

    Calls of numpy cost 2 µs each whatever they do (with cold caches, as here), and so they are few: what is rare is looked
    for in bytes, and looked at closely only when found.

    >>> text = b'{"a": {"b" : 1}, "a": "c: d \\": e"}\n{}'
    >>> layout = Layout(text, 0, len(text))
    >>> layout.ends, layout.keys(0, 35), layout.keys(36, 38), layout.is_closed
    ([35, 38], 3, 0, True)
    """

    def __init__(self, text: bytes, begin: int, end: int, room: Marks | None = None) -> None:
        """Of the whole lines in [begin, end). `room`, of as many entries as there are bytes or more, is written over: passed
        again and again, it spares the system giving and taking as much memory each time.
        """
        self.ends = line_ends(text, begin, end)
        self._begin = begin
        self._octets = np.frombuffer(text, np.uint8, end - begin, begin)
        # numpy's own search takes 5 µs to begin
        self._keys = self._found(None if room is None else room[: end - begin]).data

    def keys(self, begin: int, end: int) -> int:
        """At least the number of keys that the objects in these whole lines write."""
        first = bisect_left(self._keys, begin - self._begin)
        return bisect_left(self._keys, end - self._begin, first) - first

    @property
    def is_closed(self) -> bool:
        """Whether each line begins with { and ends with }."""
        ends, octets = np.array(self.ends) - self._begin, self._octets
        opened = octets[:1].tobytes() + octets[ends[:-1] + 1].tobytes()
        closed = octets[ends - 1].tobytes()
        return bool(opened == b"{" * len(ends) and closed == b"}" * len(ends))

    def _found(self, room: Marks | None) -> Positions:
        """Where the quotes are that end keys."""
        octets = self._octets
        quotes = np.equal(octets, _COLON, out=room).nonzero()[0] - 1
        before = octets[quotes]
        are_keys = before == _QUOTE
        shown = before.tobytes()
        if b" " in shown or b"\t" in shown or b"\r" in shown:
            apart = np.flatnonzero(_IS_BLANK[before])
            quotes[apart] = _last_non_blank(octets, quotes[apart])
            before = octets[quotes[apart]]
            are_keys[apart] = (before == _QUOTE) | _IS_BLANK[before]
        keys: Positions = quotes[are_keys]
        behind = octets[keys - 1]
        if b"\\" in behind.tobytes():
            suspects = (behind == _BACKSLASH).nonzero()[0]
            keys = np.delete(keys, suspects[~_are_unescaped(octets, keys[suspects])])
        return keys


def _last_non_blank(octets: Bytes, at: Positions) -> Positions:
    """From each position backwards over white space, as far as `LOOKED_BACK`; what is still blank then stays so."""
    for _ in range(LOOKED_BACK):
        blank = _IS_BLANK[octets[at]] & (at > 0)
        if not blank.any():
            break
        at = at - blank
    return at


def _are_unescaped(octets: Bytes, quotes: Positions) -> Marks:
    """Of quotes after a backslash: whether it is one of an even number; also where there are too many to count."""
    if b"\\" not in octets[quotes - 2].tobytes():
        return np.zeros(len(quotes), dtype=np.bool_)  # as usual: one backslash before each
    backslashes = np.zeros_like(quotes)
    at = quotes - 1
    running = (octets[at] == _BACKSLASH) & (at >= 0)
    for _ in range(LOOKED_BACK):
        if not running.any():
            break
        backslashes += running
        at = at - running
        running &= (octets[at] == _BACKSLASH) & (at >= 0)
    are_unescaped: Marks = (backslashes % 2 == 0) | running
    return are_unescaped
