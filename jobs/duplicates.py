"""Exact repeats inside one file. Pure."""

from __future__ import annotations

from array import array

from jobs.types import Repeatable

_BUCKETS = 256


def followers(found: Repeatable) -> dict[int, int]:
    """Each line that asks what an earlier line asked → the first line that did.

    Lines are sorted into buckets by the first byte of their digest, so that memory is that of a bucket, not of the file.

    >>> followers(Repeatable(idx=[0, 4, 7], digests=b"a" * 16 + b"b" * 16 + b"a" * 16))
    {7: 0}
    """
    buckets = [array("L") for _ in range(_BUCKETS)]
    for position in range(len(found.idx)):
        buckets[found.digests[16 * position]].append(position)
    follows: dict[int, int] = {}
    for bucket in buckets:
        first: dict[bytes, int] = {}
        for position in bucket:
            line = found.idx[position]
            leader = first.setdefault(found.digest(position), line)
            if leader != line:
                follows[line] = leader
    return follows
