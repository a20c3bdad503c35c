"""Request lines: from a shard's bytes to what is sent to the engine. Pure.

The body of a request goes to the engine as the very bytes that the submitter wrote (numbers keep their digits, keys
their order); only `model` is replaced where the engine serves it under another name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from json.decoder import JSONDecodeError, JSONDecoder
from typing import Any

_BLANK = re.compile(r"[ \t\n\r]*")
_DECODER = JSONDecoder()
_LIMITS = ("max_completion_tokens", "max_tokens", "max_output_tokens")
# For the order of work only: what a line is thought to write when it names no limit.
_UNSTATED_TOKENS = 256


class BadShard(Exception):
    """The shard's bytes are not the request lines that the lease promised."""


@dataclass(slots=True, eq=False)
class Line:
    """One request. `attempts` counts the tries that ended in an engine's crash, error or silence."""

    idx: int
    custom_id: str
    body: bytes = field(repr=False)
    max_tokens: int
    attempts: int = 0
    last_fault: tuple[str, str] | None = None

    @property
    def weight(self) -> tuple[int, int]:
        """Longest first: the last minute of a shard should not be one straggler."""
        return (self.max_tokens, len(self.body))


@dataclass(frozen=True, slots=True)
class Member:
    """One `"key": value` of a JSON object: the value, and where it stands in the text."""

    key: str
    start: int
    stop: int
    value: Any


def read_shard(
    content: bytes,
    *,
    first_idx: int,
    lines: int,
    served_model: str | None,
    skip: Collection[int],
    unstated: tuple[str, int] | None = None,
) -> list[Line]:
    """The lines of a shard that are still to be done, longest first. `skip` holds line numbers of the input file. `unstated`:
    the limit (its name, tokens) that is sent with lines that say none of their own.

    Lines to skip may be anything, also blank or not text: they are counted, by their newlines, and not read.
    Raises BadShard when there are not exactly `lines` lines, or one that is to be done is not a request.
    """
    rows = content.removesuffix(b"\n").split(b"\n")
    if len(rows) != lines:
        raise BadShard(f"the shard's bytes hold {len(rows)} lines, the lease says {lines}")
    found = [
        _read_line(row, first_idx + at, served_model, unstated)
        for at, row in enumerate(rows)
        if first_idx + at not in skip
    ]
    found.sort(key=lambda line: line.weight, reverse=True)
    return found


def _read_line(raw: bytes, idx: int, served_model: str | None, unstated: tuple[str, int] | None) -> Line:
    try:
        row = raw.decode()
        members = {member.key: member for member in object_members(row)}
    except UnicodeDecodeError as error:
        raise BadShard(f"line {idx + 1} of the input is not UTF-8: {error}") from error
    except (JSONDecodeError, RecursionError) as error:
        raise BadShard(f"line {idx + 1} of the input is not a JSON object: {error}") from error
    body, custom_id = members.get("body"), members.get("custom_id")
    if body is None or not isinstance(body.value, dict) or custom_id is None or not isinstance(custom_id.value, str):
        raise BadShard(f"line {idx + 1} of the input has no 'custom_id' string or no 'body' object")
    text = row[body.start : body.stop]
    if served_model is not None:
        text = replace_model(text, served_model)
    if unstated is not None:
        text = with_limit(text, *unstated)
    return Line(idx=idx, custom_id=custom_id.value, body=text.encode(), max_tokens=_most_tokens(body.value))


def _most_tokens(body: dict[str, Any]) -> int:
    for name in _LIMITS:
        if isinstance(body.get(name), int):
            return int(body[name])
    return _UNSTATED_TOKENS


def replace_model(body: str, model: str) -> str:
    """`body`, a JSON object, with the value of each top-level `model` replaced; every other character stays.

    >>> replace_model('{"model": "a", "seed": 1.50}', "b")
    '{"model": "b", "seed": 1.50}'
    """
    pieces, at = [], 0
    for member in object_members(body):
        if member.key == "model":
            pieces += [body[at : member.start], json.dumps(model)]
            at = member.stop
    return "".join([*pieces, body[at:]])


def with_limit(body: str, name: str, tokens: int) -> str:
    """`body`, a JSON object, with this limit of its answer where it says none; every other character stays.

    >>> with_limit('{"model": "a"}', "max_tokens", 256), with_limit('{"max_tokens": 9}', "max_tokens", 256)
    ('{"max_tokens": 256, "model": "a"}', '{"max_tokens": 9}')
    """
    stated = [member for member in object_members(body) if member.key in _LIMITS]
    if any(member.value is not None for member in stated):
        return body
    for member in reversed([each for each in stated if each.key == name]):  # null: no limit is said
        body = f"{body[: member.start]}{tokens}{body[member.stop :]}"
    if any(member.key == name for member in stated):
        return body
    at = body.index("{") + 1
    rest = body[at:]
    return f'{body[:at]}"{name}": {tokens}{"" if rest.lstrip().startswith("}") else ", "}{rest}'


def object_members(text: str) -> Iterator[Member]:
    """The top-level members of the one JSON object that `text` is, in order. Raises JSONDecodeError."""
    at = _past_blank(text, 0)
    if text[at : at + 1] != "{":
        raise JSONDecodeError("expected an object", text, at)
    at = _past_blank(text, at + 1)
    if text[at : at + 1] == "}":
        _end(text, at + 1)
        return
    while True:
        if text[at : at + 1] != '"':
            raise JSONDecodeError("expected a key", text, at)
        key, at = _DECODER.raw_decode(text, at)
        at = _past_blank(text, at)
        if text[at : at + 1] != ":":
            raise JSONDecodeError("expected ':'", text, at)
        start = _past_blank(text, at + 1)
        value, stop = _DECODER.raw_decode(text, start)
        yield Member(key, start, stop, value)
        at = _past_blank(text, stop)
        if text[at : at + 1] == "}":
            _end(text, at + 1)
            return
        if text[at : at + 1] != ",":
            raise JSONDecodeError("expected ',' or '}'", text, at)
        at = _past_blank(text, at + 1)


def _end(text: str, at: int) -> None:
    if _past_blank(text, at) != len(text):
        raise JSONDecodeError("extra text after the object", text, at)


def _past_blank(text: str, at: int) -> int:
    match = _BLANK.match(text, at)
    return match.end() if match else at
