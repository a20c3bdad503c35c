"""Merkle trees of RFC 6962: roots out of leaves, and out of what a log keeps while it grows. Pure.

Leaf = SHA-256(0x00 ‖ bytes), node = SHA-256(0x01 ‖ left ‖ right). The two prefixes are why no leaf can pass for a node.
A `Frontier` is the roots of the full subtrees of a log, largest first: all that its next root depends on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

EMPTY = hashlib.sha256(b"").digest()
DIGEST = 32


def leaf_hash(leaf: bytes) -> bytes:
    """RFC 6962 §2.1."""
    return hashlib.sha256(b"\x00" + leaf).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """RFC 6962 §2.1."""
    return hashlib.sha256(b"\x01" + left + right).digest()


class Frontier:
    """A growing log of `size` leaves. `peaks` has one hash for each bit that is set in `size`."""

    def __init__(self, size: int = 0, peaks: Sequence[bytes] = ()) -> None:
        if len(peaks) != size.bit_count():
            raise ValueError(f"a log of {size} leaves has {size.bit_count()} peaks, not {len(peaks)}")
        self.size = size
        self.peaks = list(peaks)

    def add(self, leaf: bytes) -> None:
        """Append a leaf by its hash."""
        merged, size = leaf, self.size
        while size & 1:
            merged = node_hash(self.peaks.pop(), merged)
            size >>= 1
        self.peaks.append(merged)
        self.size += 1

    def root(self) -> bytes:
        """The tree's head. An empty log's is SHA-256 of nothing."""
        if not self.peaks:
            return EMPTY
        root = self.peaks[-1]
        for peak in reversed(self.peaks[:-1]):
            root = node_hash(peak, root)
        return root

    def encode(self) -> bytes:
        """The peaks, joined."""
        return b"".join(self.peaks)

    @classmethod
    def decode(cls, size: int, peaks: bytes) -> Frontier:
        """The inverse of `encode`. Raises ValueError when the bytes are not those of a log of `size` leaves."""
        if len(peaks) % DIGEST:
            raise ValueError(f"{len(peaks)} bytes are no whole number of hashes")
        return cls(size, [peaks[at : at + DIGEST] for at in range(0, len(peaks), DIGEST)])


def root_of(leaves: Iterable[bytes]) -> bytes:
    """The root of a log of these leaves (their bytes, not their hashes).

    >>> root_of([]).hex()[:16]
    'e3b0c44298fc1c14'
    """
    frontier = Frontier()
    for leaf in leaves:
        frontier.add(leaf_hash(leaf))
    return frontier.root()


def inclusion(hashes: Sequence[bytes], at: int) -> list[bytes]:
    """The audit path of leaf `at` (from 0) in the tree of these leaf hashes (RFC 6962 §2.1.1). Raises IndexError."""
    if not 0 <= at < len(hashes):
        raise IndexError(f"leaf {at} of {len(hashes)}")
    if len(hashes) == 1:
        return []
    split = _split(len(hashes))
    if at < split:
        return [*inclusion(hashes[:split], at), _root(hashes[split:])]
    return [*inclusion(hashes[split:], at - split), _root(hashes[:split])]


def is_included(leaf: bytes, at: int, size: int, path: Sequence[bytes], root: bytes) -> bool:
    """Whether the path leads from the leaf's hash to the root (RFC 9162 §2.1.3.2)."""
    if not 0 <= at < size:
        return False
    position, last, found = at, size - 1, leaf
    for step in path:
        if last == 0:
            return False
        if position & 1 or position == last:
            found = node_hash(step, found)
            while not position & 1 and position:
                position, last = position >> 1, last >> 1
        else:
            found = node_hash(found, step)
        position, last = position >> 1, last >> 1
    return last == 0 and found == root


def _root(hashes: Sequence[bytes]) -> bytes:
    frontier = Frontier()
    for each in hashes:
        frontier.add(each)
    return frontier.root()


def _split(size: int) -> int:
    """The largest power of two below `size`."""
    return 1 << ((size - 1).bit_length() - 1)
