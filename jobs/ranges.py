"""Sets of line numbers as sorted, disjoint, non-touching half-open ranges: pure set algebra.

Every function takes ranges that `problem` finds nothing wrong with, and returns such ranges.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence

from jobs.types import Ranges

Pairs = Sequence[Sequence[int]]


def problem(pairs: Pairs) -> str | None:
    """Why `pairs` are not a set of lines in normal form, or None when they are."""
    previous_stop = -1
    for pair in pairs:
        if len(pair) != 2:
            return f"{list(pair)} is not a pair [start, stop)"
        start, stop = pair
        if start < 0 or stop <= start:
            return f"[{start}, {stop}) is empty or negative"
        if start <= previous_stop:
            return f"[{start}, {stop}) is out of order, overlaps or touches the range before it"
        previous_stop = stop
    return None


def normal(pairs: Iterable[Sequence[int]]) -> Ranges:
    """The same set in normal form, whatever the order and overlaps. Empty pairs vanish.

    >>> normal([[3, 5], [0, 2], [2, 3], [7, 7]])
    ((0, 5),)
    """
    merged: list[tuple[int, int]] = []
    for start, stop in sorted((pair[0], pair[1]) for pair in pairs):
        if stop <= start:
            continue
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(stop, merged[-1][1]))
        else:
            merged.append((start, stop))
    return tuple(merged)


def from_lines(lines: Iterable[int]) -> Ranges:
    """The ranges that hold exactly these line numbers.

    >>> from_lines([4, 1, 2])
    ((1, 3), (4, 5))
    """
    return normal((line, line + 1) for line in lines)


def lines_of(ranges: Pairs) -> Iterator[int]:
    """The line numbers, ascending."""
    for start, stop in ranges:
        yield from range(start, stop)


def count(ranges: Pairs) -> int:
    return sum(stop - start for start, stop in ranges)


def union(left: Pairs, right: Pairs) -> Ranges:
    return normal([*left, *right])


def intersection(left: Pairs, right: Pairs) -> Ranges:
    """The lines in both, in one pass over the two sorted lists."""
    common: list[tuple[int, int]] = []
    i = j = 0
    while i < len(left) and j < len(right):
        start, stop = max(left[i][0], right[j][0]), min(left[i][1], right[j][1])
        if start < stop:
            common.append((start, stop))
        if left[i][1] < right[j][1]:
            i += 1
        else:
            j += 1
    return tuple(common)


def within(pairs: Ranges, start: int, stop: int) -> Ranges:
    """The lines of `pairs` that lie in [start, stop), found by bisection: for one small span of many.

    >>> within(((0, 3), (5, 9)), 2, 6)
    ((2, 3), (5, 6))
    """
    at = bisect_right(pairs, start, key=lambda pair: pair[1])
    found: list[tuple[int, int]] = []
    while at < len(pairs) and pairs[at][0] < stop:
        found.append((max(start, pairs[at][0]), min(stop, pairs[at][1])))
        at += 1
    return tuple(found)


def intersects(left: Pairs, right: Pairs) -> bool:
    return bool(intersection(left, right))


def difference(left: Pairs, right: Pairs) -> Ranges:
    """The lines of `left` that are not in `right`.

    >>> difference([(0, 10)], [(2, 3), (9, 12)])
    ((0, 2), (3, 9))
    """
    rest: list[tuple[int, int]] = []
    for start, stop in left:
        at = start
        for cut_start, cut_stop in intersection([(start, stop)], right):
            if at < cut_start:
                rest.append((at, cut_start))
            at = cut_stop
        if at < stop:
            rest.append((at, stop))
    return tuple(rest)


def contains(outer: Pairs, inner: Pairs) -> bool:
    """Whether every line of `inner` is in `outer`."""
    return not difference(inner, outer)
