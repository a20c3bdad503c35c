"""The common case, quickly: lines that are good beyond doubt. Everything else is left to `request_line.check`.

A line is accepted here only when the slow way would accept it with the same `Request`: msgspec refuses what is not JSON
(bad UTF-8, control characters, lone surrogates, numbers without end), `line_keys` proves that no key was written twice,
and what is left is compared with the same rules. In doubt the answer is None.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NotRequired, TypedDict

import msgspec

from jobs import estimates, media, prefix, repeatable, request_keys, request_line
from jobs.line_names import LONGEST_NAME
from jobs.request_line import Request, Terms

CHAT = "/v1/chat/completions"
KEYS_OF_LINE = 4  # custom_id, method, url, body
KEYS_OF_MESSAGE = 2
DEPTH_OF_CHAT = 4  # line, body, messages, message
REMEMBERED_SHAPES = 1_000
TOO_DEEP = -(1 << 60)  # a number of keys that no line has
# Keys whose values are bounded, or must be off or of a certain kind.
_LOOKED_AT = frozenset(
    {*request_line.SEVERAL, *estimates.OUTPUT_LIMITS, "stream", "stream_options", "tools", "chat_template_kwargs"}
)


class _Message(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    role: str
    content: str


# Keys that it does not name are skipped, and missed when keys are counted.
_Chat = TypedDict(  # type: ignore[misc]
    "_Chat",
    {"messages": list[_Message], "model": str}
    | dict.fromkeys(request_keys.ALLOWED[CHAT] - {"messages", "model"}, NotRequired[Any]),
)


class _ChatLine(msgspec.Struct, gc=False):
    custom_id: str
    method: str
    url: str
    body: _Chat


_CHAT_LINE = msgspec.json.Decoder(_ChatLine)
_ANY = msgspec.json.Decoder()


class QuickReader:
    """Reads lines of one file, all held to the same terms."""

    def __init__(self, terms: Terms) -> None:
        self._terms = terms
        self._longest_name = min(terms.limits.max_custom_id_chars, LONGEST_NAME)
        self._shapes: dict[tuple[str, ...], tuple[str, ...]] = {}

    def read(self, row: bytes | memoryview, keys: int, *, may_hold_returns: bool = True) -> Request | None:
        """The request in a line without its newline, whose objects write `keys` keys at the most; None if a closer look is
        needed. `may_hold_returns`: whether there may be a carriage return in it, which is allowed at its end alone.
        """
        if may_hold_returns and b"\r" in bytes(row[:-1]):
            return None
        try:
            line = _CHAT_LINE.decode(row)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return self._read_any(row, keys)
        body: dict[str, Any] = line.body  # type: ignore[assignment]
        messages: list[_Message] = body["messages"]
        name = line.custom_id
        if not (
            messages
            and self._terms.limits.max_depth >= DEPTH_OF_CHAT
            and line.url == CHAT
            and line.method == "POST"
            and 0 < len(name) <= self._longest_name
            and "\0" not in name
            and body["model"]
            and self._is_fine(body, keys - KEYS_OF_LINE - len(body) - KEYS_OF_MESSAGE * len(messages))
        ):
            return self._read_any(row, keys)
        return self._request(name, body, messages)

    def _is_fine(self, body: Mapping[str, Any], keys_inside: int) -> bool:
        """Whether the rest of a chat's body holds just so many keys, and nothing that is refused."""
        shape = tuple(body)
        looked_at = self._shapes.get(shape)
        if looked_at is None:
            looked_at = tuple(_LOOKED_AT.intersection(shape))
            if len(self._shapes) < REMEMBERED_SHAPES:
                self._shapes[shape] = looked_at
        for value in body.values():
            if value.__class__ is dict or (value.__class__ is list and value is not body["messages"]):
                keys_inside -= _count(value, self._terms.limits.max_depth - 2)
        return keys_inside == 0 and all(self._is_allowed(name, body[name]) for name in looked_at)

    def _is_allowed(self, name: str, value: object) -> bool:
        if value is None:
            return True
        if name in estimates.OUTPUT_LIMITS:
            return type(value) is int and 0 < value <= self._terms.limits.max_output_tokens
        if name in request_line.SEVERAL:
            return type(value) is int and 0 < value <= self._terms.limits.max_n
        if name == "tools":
            return next(media.tool_problems(value), None) is None
        if name == "chat_template_kwargs":
            return request_keys.is_harmless_template_kwargs(value)
        return value is False  # stream, stream_options

    def _request(self, name: str, body: dict[str, Any], messages: list[_Message]) -> Request:
        chars = sum([len(message.role) + len(message.content) for message in messages])
        digest = None
        if self._terms.reuse and repeatable.is_repeatable(body, CHAT):
            digest = repeatable.digest(body, CHAT)
        return Request(
            custom_id=name,
            url=CHAT,
            model=body["model"],
            input_tokens=estimates.of_chat(chars, len(messages)),
            output_tokens=estimates.output_tokens(body, CHAT, self._terms.default_output_tokens),
            prefix=prefix.of_texts(messages[0].role, [message.content for message in messages]),
            digest=digest,
            tags={},
        )

    def _read_any(self, row: bytes | memoryview, keys: int) -> Request | None:
        """Any line, by the slow way's own rules: only reading it is quicker."""
        try:
            parsed = _ANY.decode(row)
            if not isinstance(parsed, dict) or _count(parsed, self._terms.limits.max_depth) != keys:
                return None
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return None
        if next(request_line.problems(parsed, self._terms), None) is not None:
            return None
        return request_line.request_of(parsed, self._terms)


def _count(value: object, depth: int) -> int:
    """The keys of all objects in a value; far below zero if it is nested deeper than `depth`."""
    if depth <= 0:
        return TOO_DEEP
    if isinstance(value, dict):
        inside: Any = value.values()
        keys = len(value)
    else:
        inside, keys = value, 0
    for inner in inside:
        if inner.__class__ is dict or inner.__class__ is list:
            keys += _count(inner, depth - 1)
    return keys
