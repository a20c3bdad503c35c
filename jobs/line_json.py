"""A line's bytes as a JSON object, or what is wrong with them in words. Pure.

Python's own decoder reads them because it alone reports duplicate keys and non-finite numbers and says where text stops
being JSON (13 µs for a line of 4 kB).
"""

from __future__ import annotations

import json
import math
import re
from typing import Any

from jobs.types import Limits

_TOKENS_OF_NESTING = re.compile(rb'"(?:[^"\\]|\\.)*+"?|[\[\]{}]', re.DOTALL)  # possessive: linear for any bytes
_ESCAPED_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


class NotJson(ValueError):
    """The message is the finding's message."""


def parse(content: bytes, limits: Limits) -> dict[str, Any]:
    """The object that a line is. Raises NotJson."""
    text = _text(content)
    if _depth_exceeds(content, limits.max_depth):
        raise NotJson(f"nested deeper than {limits.max_depth} levels (limit max_depth)")
    try:
        parsed = _DECODER.decode(text)
    except NotJson:
        raise
    except json.JSONDecodeError as error:
        raise NotJson(
            f"not valid JSON: {error.msg} at character {error.pos + 1}; write one JSON object a line"
        ) from error
    except ValueError as error:  # int() refuses thousands of digits
        raise NotJson("a number in it has thousands of digits; write one below 1e308") from error
    if not isinstance(parsed, dict):
        raise NotJson(f"a {_kind(parsed)}, not a JSON object; write one JSON object a line")
    if _ESCAPED_SURROGATE.search(content):
        _refuse_lone_surrogates(parsed)
    return parsed


def _text(content: bytes) -> str:
    if b"\0" in content:
        raise NotJson(f"a NUL byte at byte {content.index(0) + 1}; remove it or write \\u0000 inside a string")
    if b"\r" in content:
        raise NotJson("a carriage return inside the line; end lines with \\n or \\r\\n")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise NotJson(f"not valid UTF-8 at byte {error.start + 1}; save the file as UTF-8") from error


def _depth_exceeds(content: bytes, limit: int) -> bool:
    """Without parsing: a parser that recurses must not be the one to find out."""
    if content.count(b"[") + content.count(b"{") <= limit:
        return False
    depth = 0
    for found in _TOKENS_OF_NESTING.finditer(content):
        mark = found[0]
        if mark in (b"[", b"{"):
            depth += 1
            if depth > limit:
                return True
        elif mark in (b"]", b"}"):
            depth -= 1
    return False


def _refuse_lone_surrogates(parsed: dict[str, Any]) -> None:
    try:
        json.dumps(parsed, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        raise NotJson(
            f"a lone surrogate \\u{ord(error.object[error.start]):04x} in a string: half of a character; "
            "write the character itself or both halves"
        ) from error


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise NotJson(f"the key {shown(twice)} appears twice in one object; keep one of them")
    return found


def _finite(digits: str) -> float:
    value = float(digits)
    if math.isinf(value):
        raise NotJson(f"the number {shown(digits)[1:-1]} is larger than any engine can hold; write one below 1e308")
    return value


def _no_constant(name: str) -> None:
    raise NotJson(f"{name} is not JSON; write a number or null")


_DECODER = json.JSONDecoder(object_pairs_hook=_no_duplicates, parse_float=_finite, parse_constant=_no_constant)


def shown(value: object) -> str:
    """A value as JSON, shortened; whatever is typed may be huge or may not even be printable."""
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


def _kind(value: object) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "boolean"
        case str():
            return "string"
        case list():
            return "list"
    return "number"
