"""How many keys the JSON objects in a line write, counted without parsing: the proof that a parser lost none of them.

Fast parsers keep the last of two equal keys and say nothing. Here every colon is counted whose last non-blank byte before
it is an unescaped quote. In valid JSON each key is followed by such a colon, so the count is at least the number of keys
written; a parser that returns this many keys has lost none. The count is too high only for lines with a string that
begins with a colon, such as ":)": whoever compares must then look closer.
"""

from __future__ import annotations

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


def line_ends(stretch: bytes) -> list[int]:
    """Where each line of a stretch of whole lines ends: at its newline, or at the end of the stretch."""
    ends, end = [], stretch.find(b"\n")
    while end >= 0:
        ends.append(end)
        end = stretch.find(b"\n", end + 1)
    return ends if stretch.endswith(b"\n") else [*ends, len(stretch)]


def written_keys(stretch: bytes, ends: list[int]) -> list[int]:
    """For each line of the stretch: at least the number of keys that its objects write.

    >>> text = b'{"a": {"b" : 1}, "a": "c: d \\\\": e"}\\n{}'
    >>> written_keys(text, line_ends(text))
    [3, 0]
    """
    octets = np.frombuffer(stretch, dtype=np.uint8)
    colons = np.flatnonzero(octets == _COLON)
    before = octets[colons - 1]
    are_keys = before == _QUOTE
    quotes = colons - 1
    apart = np.flatnonzero(_IS_BLANK[before])
    if len(apart):
        quotes[apart] = _last_non_blank(octets, quotes[apart])
        before = octets[quotes[apart]]
        are_keys[apart] = (before == _QUOTE) | _IS_BLANK[before]
    keys = quotes[are_keys]
    suspects = np.flatnonzero(octets[keys - 1] == _BACKSLASH)
    if len(suspects):
        keys = np.delete(keys, suspects[~_are_unescaped(octets, keys[suspects])])
    counts: list[int] = np.diff(np.searchsorted(keys, ends), prepend=0).tolist()
    return counts


def _last_non_blank(octets: Bytes, at: Positions) -> Positions:
    """From each position backwards over white space, as far as `LOOKED_BACK`; what is still blank then stays so."""
    for _ in range(LOOKED_BACK):
        blank = _IS_BLANK[octets[at]] & (at > 0)
        if not blank.any():
            break
        at = at - blank
    return at


def _are_unescaped(octets: Bytes, quotes: Positions) -> Marks:
    """Whether an even number of backslashes stands before each quote; also where there are too many to count."""
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
