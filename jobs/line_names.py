"""Reading the custom_id of a line that may not be a request at all, so that its failure can be told to its submitter.

The validator and whoever composes results must read the same name out of the same bytes; both use `name_of`.
"""

from __future__ import annotations

import re

import msgspec

# A line up to this size is read as a whole; of a longer one only the beginning is looked at.
WHOLE_LINE_BYTES = 1024 * 1024
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
    if len(line) <= WHOLE_LINE_BYTES:
        try:
            return _usable(_NAMED.decode(line).custom_id)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            pass  # not an object with a name: perhaps its beginning is
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
