"""Reading the custom_id of a line that may not be a request at all, so that its failure can be told to its submitter.

The validator and whoever composes results must read the same name out of the same bytes; both use `name_of`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence

import msgspec

# Of a line that is too long to be held, only the beginning is looked at.
NAME_WITHIN_BYTES = 1_000
LONGEST_NAME = 4_096  # characters; no project may allow more

_FIRST_MEMBER = re.compile(rb'[ \t]*\{[ \t]*"custom_id"[ \t]*:[ \t]*("(?:[^"\\\x00-\x1f]|\\.)*")')


class _Named(msgspec.Struct):
    custom_id: str


_NAMED = msgspec.json.Decoder(_Named)
_TEXT = msgspec.json.Decoder(str)


def name_of(line: bytes) -> str | None:
    r"""The custom_id in a line's bytes: of any object that has one, and of broken JSON if it is the first member.

    >>> name_of(b'{"url": 7, "custom_id": "a-1"}')
    'a-1'
    >>> name_of(b'{"custom_id": "a-1", "body": {"mess')
    'a-1'
    >>> name_of(b"\xff\xfe") is name_of(b'{"custom_id": 7}') is None
    True
    """
    try:
        return _usable(_NAMED.decode(line).custom_id)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return beginning_name_of(line)  # not an object with a name: perhaps its beginning is


def beginning_name_of(line: bytes) -> str | None:
    """The custom_id at the very beginning of a line, of which the rest may be missing."""
    found = _FIRST_MEMBER.match(line[:NAME_WITHIN_BYTES])
    if found is None:
        return None
    try:
        return _usable(_TEXT.decode(found[1]))
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None


def _usable(name: str) -> str | None:
    """Names that output files and databases can hold: a NUL or half a character would break them."""
    if not name or len(name) > LONGEST_NAME or "\0" in name:
        return None
    return None if any("\ud800" <= char <= "\udfff" for char in name) else name


class Names:
    """Which custom_id was used first on which line. Exact, and about 150 bytes for each: a million cost 150 MB."""

    # A text costs 49 bytes and its characters; of longer ones, or others than ASCII, 16 bytes of a hash are kept.
    _KEPT_CHARS = 32

    def __init__(self) -> None:
        self._first: dict[str | bytes, int] = {}

    def first_use(self, name: str, line: int) -> int:
        """The line that used the name first: this one, if none did before."""
        is_short = len(name) <= self._KEPT_CHARS and name.isascii()
        return self._first.setdefault(name if is_short else _hashed(name), line)

    def are_new(self, names: list[str], line: int) -> bool:
        """Whether the lines from `line` on, each with its name, are the first to use theirs; they may be asked again."""
        keys: Sequence[str | bytes] = names
        if max(map(len, names)) > self._KEPT_CHARS or not "".join(names).isascii():
            keys = [name if len(name) <= self._KEPT_CHARS and name.isascii() else _hashed(name) for name in names]
        lines = range(line, line + len(names))
        return list(map(self._first.setdefault, keys, lines)) == list(lines)


def _hashed(name: str) -> bytes:
    return hashlib.blake2b(name.encode(), digest_size=16).digest()
